"""What the trainer costs over a bare hand-written loop on the same networks, with data in memory and one process.

  python benchmarks/trainer_overhead.py

ratio: images/s of Trainer over the bare loop on the 5-level MNIST StackedWAE. overhead_us: microseconds per step that
the trainer adds on a trivial network, logging every 50 steps. Both sides take turns, block by block: the medians
of the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import Config, HeldOut
from dtrain.data.batch import Batch
from dtrain.faults import StopSignal
from dtrain.models.base import Algorithm, DataFacts, Site, Terms, Update
from dtrain.noise import Noise
from dtrain.trainer import Trainer
from dtrain.world import World


class Trivial(Algorithm):
    """One linear layer: all that is left of a step is overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)
        self.groups = {"net": ("net",)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update("net", self.loss, next(batches))

    def loss(self, batch: Batch) -> Terms:
        return {"square": self.net(batch.x).square().mean()}


class OneBatch:
    """A loader that always has the same batch ready."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch

    def once(self) -> Iterator[Batch]:
        yield self.batch

    def close(self) -> None:
        """Nothing to close."""


class NoEvaluation:
    """No step is evaluated here."""

    def rehearse(self) -> set[str]:
        return set()

    def measure(self, split: HeldOut) -> dict[str, float]:
        return {}

    def draw(self, split: HeldOut) -> None:
        """No pictures."""


def bare(algorithm: Algorithm, batches: Iterator[Batch], loss: Callable[[Batch], Terms]) -> Callable[[], None]:
    """One step of the loop that one would write by hand."""
    optimizer = torch.optim.Adam(algorithm.parameters(), fused=True)
    algorithm.train()

    def step() -> None:
        total = torch.stack(list(loss(next(batches)).values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trained(trainer: Trainer) -> Callable[[], None]:
    """The same through Trainer: its own steps, with logs and without evaluation or checkpoint."""

    def step() -> None:
        for stage in trainer.advance():
            stage.step(trainer.stream, trainer.updater)
        trainer.stop.agreed()

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    begin = time.perf_counter()
    for _i in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def compare(
    config: Config, make: Callable[[], Algorithm], batch: Batch, steps: int, repeats: int
) -> tuple[float, float, float, float]:
    """Medians over blocks of `steps` steps, bare and trained in turn: seconds per step of both, ratio, difference."""
    algorithm, loader = make(), OneBatch(batch)
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        stop = StopSignal(World())
        site = Site(Path(folder), loader, 0, len(batch), World(), stop.poll, lambda *groups: "")  # type: ignore[arg-type]
        trainer = Trainer(config, make(), site, stop, NoEvaluation())
        trainer.begin()
        sides = (bare(algorithm, loader.batches(), algorithm.loss), trained(trainer))  # type: ignore[arg-type]
        for i in range(repeats + 1):
            order = sides if i % 2 else sides[::-1]
            times = {step: seconds(step, steps) for step in order}
            pairs.append((times[sides[0]], times[sides[1]]))
            if i % 5 == 0:
                us = [round(t * 1e6) for t in pairs[-1]]
                print(f"block {i} of {repeats}: bare {us[0]} us, trainer {us[1]} us", file=sys.stderr)
        trainer.log.close()
    del pairs[0]  # warm-up
    return (
        statistics.median(b for b, _ in pairs),
        statistics.median(t for _, t in pairs),
        statistics.median(b / t for b, t in pairs),
        statistics.median(t - b for b, t in pairs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="blocks of each side")
    parser.add_argument("--steps", type=int, default=5, help="in a block, of the StackedWAE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cfg = configs.compose(["experiment=quickstart", "trainer.log_every=50", "trainer.checkpoint.every=1000000"])
    config = configs.read(cfg)

    def stacked() -> Algorithm:
        algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
        algorithm.loss = algorithm.objective  # type: ignore[assignment]
        return algorithm

    images = Batch(torch.rand(128, 1, 28, 28), Noise.of(128))
    rows = Batch(torch.rand(128, 8), Noise.of(128))
    quick = compare(config, Trivial, rows, 250, arguments.repeats)
    slow = compare(config, stacked, images, arguments.steps, arguments.repeats)
    result = {
        "ratio": round(slow[2], 4),
        "bare_images_per_s": round(128 / slow[0], 1),
        "images_per_s": round(128 / slow[1], 1),
        "overhead_us": round(quick[3] * 1e6, 1),
        "bare_step_us": round(quick[0] * 1e6, 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
