"""What a step sends and a rank holds in a world of thousands, without a cluster: counted, not timed.

  python -m benchmarks.world
  python -m benchmarks.world --world 512 --models stackedwae --ways hsdp

This process plays rank 0 of torch's fake process group, which sends nothing; a step's tensors have shapes and no
numbers. sends: by what for and which collective its calls, the ranks of its group, and sent_mb, what a rank sends if
collectives are rings: (g-1)/g of what g ranks gather or scatter, twice that of what they all-reduce. A record is of
logged steps alone (here of one step), a vote twice a second. largest_mb: the largest tensor of the step. Before all
that a few ranks' rows, their order and noise, are compared with those of one process. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops, sync_ops
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.data.batch import Batch
from dtrain.data.order import Order, positions
from dtrain.distributed import NODE, distribute
from dtrain.faults import StopSignal
from dtrain.group import Group
from dtrain.models.base import Algorithm, DataFacts
from dtrain.noise import Noise
from dtrain.update import Updater
from dtrain.world import World

MODELS = ("stackedwae", "stackedwae_celeba")
WAYS: dict[str, tuple[str, Callable[[int], int | None]]] = {  # trainer.strategy, trainer.shard_size by world
    "ddp": ("ddp", lambda world: None), "fsdp": ("fsdp", lambda world: world), "hsdp": ("fsdp", lambda world: NODE),
}  # fmt: skip
RING = {"allgather": ("all_gather", 1), "reducescatter": ("reduce_scatter", 1), "allreduce": ("all_reduce", 2)}
SILENT = {"_wrap_tensor_autograd"}  # what torch has beside its collectives
# What a collective is for: the innermost of these places among its callers.
PURPOSES = {
    "dtrain/nets/batchnorm.py": "batch_norm", "dtrain/record.py": "record", "dtrain/faults.py": "vote",
    "dtrain/group.py": "gradient_norms", "torch/distributed/fsdp/": "shards", "benchmarks/world.py": "gradients",
    "dtrain/models/": "codes", "dtrain/update.py": "codes",
}  # fmt: skip


class Sends(TorchDispatchMode):
    """Notes what this rank sends, by (purpose, collective), and the bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], dict[str, float]] = {}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # comes back as what it does with its shards
        out = func(*args, **(kwargs or {}))
        if "c10d" in func.namespace and func not in sync_ops and func._overloadpacket.__name__ not in SILENT:
            if func not in collective_ops:
                raise TypeError(f"{func}: torch's list of collectives does not know it")
            self._note(func, args)
        self.largest = max(self.largest, *map(size, tree_leaves(out)), 0)
        return out

    def _note(self, func: Any, args: Any) -> None:
        name = func._overloadpacket.__name__.replace("_", "")
        collective, rounds = next(found for part, found in RING.items() if part in name)
        ranks = CollectiveOp.get_process_group(func, args).size()
        whole = max(held(tree_leaves(arg)) for arg in args)  # of its input and its output, of which one is a part
        seen = self.found.setdefault((purpose(), collective), {"calls": 0, "ranks": ranks, "sent_mb": 0.0})
        if seen["ranks"] != ranks:
            raise RuntimeError(f"{collective} in groups of {seen['ranks']} and of {ranks} for the same purpose")
        seen["calls"] += 1
        seen["sent_mb"] += rounds * whole * (ranks - 1) / ranks / 1e6


def purpose() -> str:
    """Of the collective that is being called."""
    frame = sys._getframe(3)  # above Sends
    while frame is not None:
        for place, name in PURPOSES.items():
            if place in frame.f_code.co_filename:
                return name
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("a collective that is called from none of PURPOSES")


def size(leaf: Any) -> int:
    """Bytes of a tensor, of a DTensor those of this rank's shard; 0 of anything else."""
    if isinstance(leaf, DTensor):
        leaf = leaf.to_local()
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


def held(leaves: Iterable[Any]) -> int:
    return sum(map(size, leaves))


class Weighed(Updater):
    """Also notes the bytes of the gradients that a step holds."""

    gradients = 0

    def _step(self, active: list[Group], scaler: torch.amp.GradScaler | None, skip: Tensor | None) -> None:
        self.gradients = held(p.grad for group in active for p in group.params)
        super()._step(active, scaler, skip)


def reduced(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does with a bucket; the fake group has none of the futures that it would wait for."""
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def measure(
    world: World, mode: AbstractContextManager[Any], model: str, way: str, each: int, *overrides: str
) -> dict[str, Any]:
    """One line: what rank 0 holds and sends in a first step with `each` images a rank, its record, and a vote."""
    strategy, shard_size = WAYS[way]
    cfg = configs.compose([f"model={model}", f"trainer.batch_size={each * world.size}", *overrides])
    config = configs.read(cfg)
    algorithm: Algorithm = build_algorithm(config, DataFacts(config.data.image_shape))
    distribute(algorithm, world, strategy=strategy, shard_size=shard_size(world.size), sync_batchnorm=True)
    for net in algorithm.modules():
        if isinstance(net, DistributedDataParallel):
            # DDP would refuse a hook with annotations that are strings.
            net.register_comm_hook(None, lambda state, bucket: reduced(bucket))
    updater, stop = Weighed(algorithm, config.optim, config.trainer, world), StopSignal(world)
    with mode, Sends() as step:
        batch = Batch(torch.zeros(each, *config.data.image_shape), Noise.of(each))
        updater.begin(0, 0, 10**9, measure=True)
        algorithm.step(iter([batch]), updater)
    for row in (row for record in updater.records.values() for row in record.rows):
        row.values = torch.zeros(row.values.shape)  # reading needs numbers
    with Sends() as between:
        updater.read(world)
        stop.agreed()
    optimizers = [group.optimizer for group in updater.groups.values()]
    sends = [
        {"for": what, "collective": kind, **seen, "sent_mb": round(seen["sent_mb"], 6)}
        for (what, kind), seen in sorted((step.found | between.found).items())
    ]
    return {
        "model": model, "way": way, "world": world.size, "batch": each * world.size,
        "parameters_mb": held(algorithm.parameters()) / 1e6, "gradients_mb": updater.gradients / 1e6,
        "adam_mb": held(tree_leaves([o.state[p] for o in optimizers for p in o.state])) / 1e6,
        "largest_mb": step.largest / 1e6, "sends": sends,
    }  # fmt: skip


def check_rows(world_size: int, ranks: Sequence[int], each: int = 2, images: int = 60_000, seed: int = 0) -> None:
    """RuntimeError unless these ranks read the samples, and draw the noise, of one process's rows r, r + W, ….

    In the step that crosses from the first epoch to the second.
    """
    batch = each * world_size
    begin = images // batch * batch
    order, sites = Order(images, seed), {"z1": (32,), "prior": (2,)}
    whole = positions(begin, batch)
    samples, noise = order.indices(whole), Noise(seed, torch.from_numpy(whole)).ahead(sites)
    for rank in ranks:
        own = positions(begin, batch, rank, world_size)
        drawn = Noise(seed, torch.from_numpy(own)).ahead(sites)
        same = len(own) == each and (order.indices(own) == samples[rank::world_size]).all()
        for site, shape in sites.items():
            same &= torch.equal(drawn.normal(site, *shape), noise.normal(site, *shape)[rank::world_size])
        if not same:
            raise RuntimeError(f"rank {rank} of {world_size} does not train on rows {rank}, {rank + world_size}, …")


def join(size: int) -> World:
    """Rank 0 of a world of so many, of which this process is all there is."""
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    return World(size=size, control=dist.new_group(backend="fake"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=4096, help=f"ranks: a multiple of {NODE} above it")
    parser.add_argument("--images", type=int, default=1, help="a rank")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    if given.world <= NODE or given.world % NODE or given.images < 1:
        parser.error(f"--world must be a multiple of {NODE} above it, and --images at least 1")
    ranks = sorted({0, 1, given.world // 2, given.world - 1})
    check_rows(given.world, ranks)
    print(f"ranks {ranks} of {given.world} train on the rows of one process", file=sys.stderr)
    # One mode for all: what is kept between steps, such as the MMD's constants, belongs to it.
    world, mode = join(given.world), FakeTensorMode(allow_non_fake_inputs=True)
    for model in given.models:
        for way in given.ways:
            print(json.dumps(measure(world, mode, model, way, given.images)), flush=True)


if __name__ == "__main__":
    main()
