"""Processes: start the group, wrap the networks, agree on decisions, gather with gradient."""

from __future__ import annotations

import os
import subprocess
import time
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dtrain.config import ConfigError
from dtrain.models.base import Algorithm
from dtrain.nets.batchnorm import SyncBatchNorm


class RanksMissing(RuntimeError):
    """A collective failed or timed out; the message names the ranks that did not arrive."""


@dataclass
class World:
    """This process among the others. control: a CPU group for agreement; saving: one for background saves."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = 600.0
    control: Any = None
    saving: Any = None
    store: Any = None
    broken: bool = False  # a collective failed: no further one may be tried

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank raised it."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)  # int32: no backend reduces bool
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return [bool(v) for v in votes.tolist()]

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of a small tensor, as float64 on the CPU."""
        values = values.detach().to("cpu", torch.float64)
        if self.size > 1:
            dist.all_reduce(values, group=self.control)
        return values / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)

    def missing_ranks(self, grace: float = 3.0) -> list[int]:
        """After a failed collective: the ranks that do not report the same failure within `grace` seconds."""
        self.store.set(f"failed/{self.rank}", b"1")
        time.sleep(grace)
        return [r for r in range(self.size) if not self.store.check([f"failed/{r}"])]


def environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) from torchrun's variables, else from srun's, else one process."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    if "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return (
            int(os.environ["SLURM_PROCID"]),
            int(os.environ["SLURM_NTASKS"]),
            int(os.environ.get("SLURM_LOCALID", "0")),
        )
    return 0, 1, 0


def _slurm_address() -> None:
    """MASTER_ADDR and MASTER_PORT for tasks that srun started without torchrun."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
        names = subprocess.run(["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True)
        os.environ["MASTER_ADDR"] = names.stdout.split()[0]
    if "MASTER_PORT" not in os.environ:
        # The same on every task of the step, another for another step or restart of the job.
        job, step, restart = (
            int(os.environ.get(f"SLURM_{name}", "0")) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")
        )
        port = 28000 + (job * 7 + step * 61 + restart) % 4700  # below the ports that clients get
        os.environ["MASTER_PORT"] = str(port)


def start(device: str = "auto", timeout: float = 600.0) -> World:
    """Joins the process group that the environment describes; one process needs none."""
    rank, size, local_rank = environment()
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: torch finds no GPU here")
    place = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size == 1:
        return World(device=place, timeout=timeout)
    if "RANK" not in os.environ:
        _slurm_address()
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank)}
    wait = timedelta(seconds=timeout)
    shared, _, _ = next(dist.rendezvous("env://", timeout=wait))
    # torchrun's store outlives its workers: a restarted job must not meet the addresses of the dead one.
    store = dist.PrefixStore(f"dtrain/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=wait,
    )  # fmt: skip
    control = dist.new_group(backend="gloo", timeout=wait)
    saving = dist.new_group(backend="gloo", timeout=wait)
    return World(rank, size, local_rank, place, timeout, control, saving, store)


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of every rank -> [sum of B, ...], rank by rank, with gradient.

    With gradient every rank has the same B. Without, B may differ by a few rows (the end of a held-out set).
    """
    if not dist.is_initialized():
        return rows
    if torch.is_grad_enabled():
        return _Gather.apply(rows)
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(counts))
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def distribute(
    algorithm: Algorithm,
    world: World,
    *,
    strategy: str,
    shard_size: int | None,
    sync_batchnorm: bool,
    channels_last: bool = False,
) -> None:
    """Moves the networks to the device and wraps each on its own, in place. One process keeps the bare networks.

    Each network alone, so that a frozen one costs no communication.
    """
    algorithm.to(world.device)
    if channels_last:
        algorithm.to(memory_format=torch.channels_last)
    if world.size == 1:
        return
    algorithm.gather = gather
    mesh = None
    if strategy == "fsdp":
        shape = (world.size // shard_size, shard_size) if shard_size else (world.size,)
        names = ("replicate", "shard") if shard_size else ("shard",)
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    for group, paths in algorithm.groups.items():
        for path in paths:
            net = algorithm.get_submodule(path)
            if sync_batchnorm:
                net = SyncBatchNorm.convert(net, world.device)
            for tensor in (*net.parameters(), *net.buffers()):
                dist.broadcast(tensor.detach(), src=0)
            # A double backward fails under FSDP, so such a (small) network stays replicated.
            if mesh is not None and group not in algorithm.double_backward:
                # Without resharding after forward, a no_grad forward leaves stale unsharded parameters behind.
                fully_shard(net, mesh=mesh, reshard_after_forward=True)
            else:
                devices = [world.device.index] if world.device.type == "cuda" else None
                with warnings.catch_warnings():  # torch 2.15 renames broadcast_buffers, which 2.11 needs
                    warnings.simplefilter("ignore", FutureWarning)
                    net = DistributedDataParallel(
                        net, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
                    )
            algorithm.set_submodule(path, net)


def set_gradient_sync(net: nn.Module, sync: bool) -> None:
    """Whether the next backward averages this network's gradients over the ranks."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(sync)
    elif isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = sync


def average_buffers(algorithm: nn.Module, world: World) -> None:
    """Makes float buffers (running statistics) the mean over ranks: agreement before evaluation and saving."""
    if world.size > 1:
        for buffer in algorithm.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world.size)
