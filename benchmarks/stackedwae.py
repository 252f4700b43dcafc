"""Training speed of the paper's StackedWAEs in every precision and layout, against plain eager fp32.

  python benchmarks/stackedwae.py
  python benchmarks/stackedwae.py --models stackedwae --batch 64 256 1024 4096      on a GPU

<model>.<batch>.images_per_s.<way>: median over rounds in which all ways take turns; ratio: over fp32 of the same
round, median. Whole steps: noise, losses, backward, norms, Adam; the batch is on the device already. On a GPU also
memory_mb, the largest of the first two steps, weights and optimizer included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.data.batch import Batch
from dtrain.distributed import distribute
from dtrain.models.base import DataFacts
from dtrain.noise import Noise
from dtrain.update import Updater
from dtrain.world import World

MODELS = ("stackedwae", "stackedwae_svhn", "stackedwae_celeba")
WAYS = {
    "fp32": (),
    "bf16": ("trainer.precision=bf16",),
    "channels_last": ("trainer.channels_last=true",),
    "bf16_channels_last": ("trainer.precision=bf16", "trainer.channels_last=true"),
    "compile": ("trainer.compile=true",),
}


def stepper(model: str, batch_size: int, overrides: tuple[str, ...], device: torch.device) -> Callable[[], None]:
    """One training step of a model, ending when the device has done it."""
    cfg = configs.compose([f"model={model}", f"trainer.batch_size={batch_size}", *overrides])
    config = configs.read(cfg)
    algorithm = build_algorithm(config, DataFacts(config.data.image_shape))
    world, trainer = World(device=device), config.trainer
    distribute(
        algorithm, world, strategy="ddp", shard_size=None, sync_batchnorm=True, channels_last=trainer.channels_last
    )
    updater = Updater(algorithm, config.optim, trainer, world)
    low, high = algorithm.value_range
    x = low + (high - low) * torch.rand(batch_size, *config.data.image_shape, device=device)
    batch = Batch(x, Noise.of(batch_size, device=device))

    def step() -> None:
        updater.begin(0, 0, 10**9, measure=False)
        algorithm.step(iter([batch]), updater)
        updater.records.clear()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(model: str, batch_size: int, ways: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    steps: dict[str, Callable[[], None]] = {}
    memory, held = {}, 0
    for way in ways:
        if device.type == "cuda":
            held = torch.cuda.memory_allocated()  # by the ways before
            torch.cuda.reset_peak_memory_stats()
        step = steps[way] = stepper(model, batch_size, WAYS[way], device)
        begin = time.perf_counter()
        step()
        step()
        seconds = time.perf_counter() - begin
        print(f"{model} {batch_size} {way}: first two steps {seconds:.1f} s", file=sys.stderr)
        if device.type == "cuda":
            memory[way] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds):
        for way in ways if i % 2 else reversed(ways):
            begin = time.perf_counter()
            steps[way]()
            times[way].append(time.perf_counter() - begin)
    speed = {way: round(batch_size / statistics.median(t), 1) for way, t in times.items()}
    ratio = {
        way: round(statistics.median(a / b for a, b in zip(times[ways[0]], t, strict=True)), 3)
        for way, t in times.items()
    }
    print(f"{model} {batch_size}: {speed} images/s", file=sys.stderr)
    return {"images_per_s": speed, "ratio": ratio} | ({"memory_mb": memory} if memory else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the first is the baseline")
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    for model in arguments.models:
        for batch_size in arguments.batch:
            result[f"{model}.{batch_size}"] = measure(model, batch_size, arguments.ways, arguments.rounds, device)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
