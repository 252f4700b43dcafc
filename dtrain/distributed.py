"""Networks on many processes: wrap each on its own, synchronise its gradients, agree on its buffers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dtrain.models.base import Algorithm
from dtrain.nets.batchnorm import SyncBatchNorm
from dtrain.world import World, gather

if TYPE_CHECKING:
    from dtrain.update import Updater

NODE = 8  # GPUs, of those that most clusters have


def distribute(
    algorithm: Algorithm,
    world: World,
    *,
    strategy: str,
    shard_size: int | None,
    sync_batchnorm: bool,
    channels_last: bool = False,
) -> None:
    """Moves the networks to the device and wraps them, in place. One process keeps the bare networks."""
    algorithm.to(world.device)
    if channels_last:
        algorithm.to(memory_format=torch.channels_last)
    if world.size > 1:
        wrap(algorithm, world, strategy, shard_size, sync_batchnorm)


def wrap(algorithm: Algorithm, world: World, strategy: str, shard_size: int | None, sync_batchnorm: bool) -> None:
    """Wraps the networks on their device, in place, for the process group that there is.

    Each network alone, so that a frozen one costs no communication.
    """
    algorithm.gather = gather
    mesh = None
    if strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes a second and a half

        size = shard_size or _shard_group(world.size)
        shape = (world.size // size, size) if size < world.size else (world.size,)
        names = ("replicate", "shard") if size < world.size else ("shard",)
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    for group, paths in algorithm.groups.items():
        for path in paths:
            net = algorithm.get_submodule(path)
            if sync_batchnorm:
                net = SyncBatchNorm.convert(net)
            for tensor in (*net.parameters(), *net.buffers()):
                dist.broadcast(tensor.detach(), src=0)
            # A gradient of a gradient fails under FSDP, so such a (small) network stays replicated.
            if mesh is not None and group not in algorithm.replicated:
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


def _shard_group(world_size: int) -> int:
    """Processes that shard the networks among them where nobody says how many: the GPUs of a node, at most.

    Over thousands most of what is sent is padding, since every parameter's first dimension is split.
    """
    return NODE if world_size > NODE and world_size % NODE == 0 else world_size


def set_gradient_sync(net: nn.Module, sync: bool) -> None:
    """Whether the next backward averages this network's gradients over the ranks."""
    if isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = sync
    elif (set_sync := getattr(net, "set_requires_gradient_sync", None)) is not None:  # FSDP's
        set_sync(sync)


def average_buffers(algorithm: nn.Module, world: World) -> None:
    """Makes float buffers (running statistics) the mean over ranks: agreement before evaluation and saving."""
    if world.size > 1:
        for buffer in algorithm.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world.size)


@contextmanager
def evaluating(algorithm: Algorithm, updater: Updater, world: World) -> Iterator[None]:
    """The algorithm in evaluation mode with the averaged weights, the same on every rank, and without gradients."""
    average_buffers(algorithm, world)
    training = algorithm.training
    algorithm.eval()
    try:
        with updater.averaged(), torch.no_grad():
            yield
    finally:
        algorithm.train(training)
