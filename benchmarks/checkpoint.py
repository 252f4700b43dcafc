"""How long a save holds up training: asynchronous and synchronous, over the mean step time.

  python benchmarks/checkpoint.py

Trains the 5-level MNIST StackedWAE (15 M parameters, 178 MB with Adam's state) in one process, and every few steps
saves in one of three ways in turn: not at all, asynchronously, synchronously. stall_steps.<way>: how long the call
to save holds up training, in mean steps. slowdown_during: the mean of the steps after it over that of plain steps,
since the writing thread shares the cores. ratio: stall of the asynchronous save over the synchronous one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.checkpoint import Checkpointer
from dtrain.data.batch import Batch
from dtrain.models.base import DataFacts
from dtrain.noise import Noise
from dtrain.tensors import settings, training_state
from dtrain.update import Updater
from dtrain.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps after each save")
    arguments = parser.parse_args()
    config = configs.read(configs.compose(["experiment=quickstart"]))
    world = World()
    algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
    updater = Updater(algorithm, config.optim, config.trainer, world)
    updater.begin(0, 0, 10**6)
    batch = Batch(torch.rand(128, 1, 28, 28), Noise.of(128))
    ways = {"none": None, "asynchronous": True, "synchronous": False}
    calls: dict[str, list[float]] = {way: [] for way in ways}
    during: dict[str, list[float]] = {way: [] for way in ways}

    def step() -> float:
        begin = time.perf_counter()
        algorithm.step(iter([batch]), updater)
        updater.read(world)
        return time.perf_counter() - begin

    with tempfile.TemporaryDirectory() as folder:
        savers = {
            way: Checkpointer(
                Path(folder), config.trainer.checkpoint.model_copy(update={"asynchronous": bool(flag), "keep": 1}),
                world, lambda text: print(text, file=sys.stderr),
            )
            for way, flag in ways.items()
        }  # fmt: skip
        for _ in range(3):
            step()
        for repeat in range(arguments.repeats):
            for way, flag in ways.items():
                begin = time.perf_counter()
                if flag is not None:
                    judged = {"stage": "train", "value": None, "judged": {"metric": None}}
                    info = {"step": repeat, **judged, **settings(updater)}
                    savers[way].save(training_state(algorithm, updater), info)
                calls[way].append(time.perf_counter() - begin)
                during[way] += [step() for _ in range(arguments.steps)]
                savers[way].wait()
                print(f"repeat {repeat} {way}: save call {calls[way][-1]:.3f} s", file=sys.stderr)
    plain = statistics.mean(during["none"])
    result = {
        "step_s": round(plain, 4),
        "stall_steps": {w: round(statistics.median(calls[w]) / plain, 2) for w in ways if w != "none"},
        "ratio": round(statistics.median(calls["asynchronous"]) / statistics.median(calls["synchronous"]), 3),
        "slowdown_during": {w: round(statistics.mean(during[w]) / plain, 3) for w in ways if w != "none"},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
