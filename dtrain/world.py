"""This process among the others: start the group, agree on decisions, gather with gradient. Knows no model."""

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
from torch import Tensor

from dtrain.device import choose, claim, identity

warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)  # all that 2.11 has
NCCL_GRACE = 120.0  # seconds after gloo's timeout: gloo names the ranks that are missing, NCCL ends the process


class RanksMissing(RuntimeError):
    """A collective failed or timed out; the message names the ranks that did not arrive."""


class PeerFailed(RuntimeError):
    """Another rank ended by an error of its own; the message names the rank and the error."""


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
    broken: bool = False  # a collective or a rank failed: no further collective may be tried
    failure: str | None = None  # which rank has failed by itself, and why

    @property
    def main(self) -> bool:
        return self.rank == 0

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

    def publish(self, reason: str, grace: float = 10.0) -> None:
        """Says that this rank ends by an error of its own; returns once the others know, or after `grace` seconds."""
        self.broken = True
        try:
            self.store.set("failure", f"rank {self.rank}: {reason}")
            others = [f"informed/{r}" for r in range(self.size) if r != self.rank]
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and not self.store.check(others):
                time.sleep(0.1)
        except RuntimeError:  # the store is gone, and the ranks with it
            pass

    def failed(self) -> str | None:
        """What a rank has published, if one has; that rank waits until all others have asked."""
        if self.failure is None and self.store.check(["failure"]):
            self.failure = self.store.get("failure").decode()
            self.store.set(f"informed/{self.rank}", b"1")
        return self.failure

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


def determine() -> None:
    """Kernels and reductions that give the same bits each time, for the whole process, before CUDA is in use.

    An operation that has no such kernel raises RuntimeError from then on. The ring alone adds in the order of the
    ranks: NCCL would choose a tree or the switches by message and machine.
    """
    os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}
    torch.use_deterministic_algorithms(True)  # torch.compile's choices of kernels too
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def start(device: str = "auto", timeout: float = 600.0, deterministic: bool = False) -> World:
    """Joins the process group that the environment describes; one process needs none. Raises ConfigError."""
    if deterministic:
        determine()
    rank, size, local_rank = environment()
    place = choose(device, local_rank)
    cuda = place.type == "cuda"
    if size == 1:
        return World(device=place, timeout=timeout)
    if "RANK" not in os.environ:
        _slurm_address()
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank)}
    wait = timedelta(seconds=timeout)
    shared, _, _ = next(dist.rendezvous("env://", timeout=wait))
    # torchrun's store outlives its workers: a restarted job must not meet the addresses of the dead one.
    store = dist.PrefixStore(f"dtrain/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
    if cuda:
        claim(store, identity(place), rank, size, wait)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size,
        timeout=wait + timedelta(seconds=NCCL_GRACE) if cuda else wait, device_id=place if cuda else None,
    )  # fmt: skip
    control = dist.new_group(backend="gloo", timeout=wait)
    saving = dist.new_group(backend="gloo", timeout=wait)
    return World(rank, size, local_rank, place, timeout, control, saving, store)


def leave() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def reseed(seed: int, step: int, world: World) -> None:
    """torch's generators, for networks that draw from them, as a function of the step: no state need be saved."""
    found = ((seed * 1_000_003 + step) * 4099 + world.rank) % 2**63
    # Not torch.manual_seed: where CUDA is not in use, it keeps a formatted traceback of every call.
    torch.default_generator.manual_seed(found)
    if world.device.type == "cuda":
        torch.cuda.manual_seed(found)


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return _gathered(rows)

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
    counts = _gathered(torch.full((1,), len(rows), device=rows.device)).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
    parts = _gathered(padded).split(max(counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def _gathered(rows: Tensor) -> Tensor:
    """Of every rank, as many each: [B, ...] -> [world * B, ...]."""
    out = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows.contiguous())
    return out
