"""A member's step in a pack against its step alone, on this device, with one thread on a CPU.

  python benchmarks/packed.py
  python benchmarks/packed.py --members 25 --rounds 5 --sizes small middle full

<size>.<members>.packed_ms, alone_ms: CPU milliseconds (on a GPU by the clock) of a member-step, median over rounds in
which both take turns; ratio: alone over packed of the same round, median: above 1 the pack is faster. Whole steps:
noise, losses, backward, Adam, record; the batch is on the device already. memory_mb: the most so far.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from dtrain import compose as configs
from dtrain.allocator import keep_freed_memory
from dtrain.build import build_algorithm
from dtrain.config import Config
from dtrain.data.batch import Batch
from dtrain.members import PackedUpdater
from dtrain.meter import memory_mb
from dtrain.models.base import Algorithm, DataFacts
from dtrain.noise import Noise
from dtrain.update import Updater
from dtrain.world import World

# Levels of StackedWAE on MNIST; full: the paper's five, 15 million parameters.
SIZES = {
    "small": "[{latent:8,hidden:16},{latent:2,hidden:16}]",
    "middle": "[{latent:16,hidden:64},{latent:8,hidden:32},{latent:2,hidden:16}]",
    "large": "[{latent:16,hidden:256},{latent:8,hidden:128},{latent:4,hidden:64},{latent:2,hidden:32}]",
    "full": None,
}
BATCH, TOTAL = 64, 10**9


def make(config: Config, lambda_rec: float, device: torch.device) -> Algorithm:
    own = config.model_copy(update={"model": {**config.model, "lambda_rec": lambda_rec}})
    return build_algorithm(own, DataFacts(config.data.image_shape)).to(device).train()


def steppers(size: str, count: int, device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of a pack of `count`, and the step of one that is alone."""
    world = World(device=device)
    levels = [f"model.levels={SIZES[size]}"] if SIZES[size] else []
    config = configs.read(configs.compose(["model=stackedwae", f"trainer.batch_size={BATCH}", *levels]))
    members = [make(config, 0.01 * (i + 1), device) for i in range(count)]
    updaters = [Updater(a, config.optim, config.trainer, world) for a in members]
    base, lone = make(config, 0.01, device), make(config, 0.01, device)
    pack = PackedUpdater(base, members, updaters)
    updater = Updater(lone, config.optim, config.trainer, world)
    batch = Batch(torch.rand(BATCH, *config.data.image_shape, device=device), Noise.of(BATCH, device=device))

    def together() -> None:
        for own in updaters:
            own.begin(0, 0, TOTAL, measure=False)
        pack.begin(0, TOTAL, measure=False)
        base.step(iter([batch]), pack)
        for own in updaters:
            own.records.clear()

    def alone() -> None:
        updater.begin(0, 0, TOTAL, measure=False)
        lone.step(iter([batch]), updater)
        updater.records.clear()

    return together, alone


def milliseconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Of one call."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - begin) / repeats * 1000


def compare(size: str, members: int, rounds: int, repeats: int, device: torch.device) -> dict[str, float]:
    together, alone = steppers(size, members, device)
    for step in (together, alone):
        milliseconds(step, repeats, device)  # warm
    pairs = []
    for _ in range(rounds):
        packed = milliseconds(together, repeats, device) / members
        pairs.append((packed, milliseconds(alone, repeats * 4, device)))
    found = {
        "packed_ms": statistics.median(p for p, _ in pairs), "alone_ms": statistics.median(a for _, a in pairs),
        "ratio": statistics.median(a / p for p, a in pairs), "memory_mb": memory_mb(device),
    }  # fmt: skip
    return {k: round(v, 3) for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--members", nargs="+", type=int, default=[25])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="steps of the pack in a round")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run does
    result = {}
    for size in arguments.sizes:
        for members in arguments.members:
            found = compare(size, members, arguments.rounds, arguments.repeats, device)
            print(f"{size}, {members} members: {found}", file=sys.stderr, flush=True)
            result[f"{size}.{members}"] = found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
