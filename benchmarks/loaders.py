"""Images/s of every loader against torchvision's ImageFolder + DataLoader, on one set, interleaved in one run.

    python benchmarks/loaders.py [--shards shards/celeba64/train]   (prepared with --formats npy,beton,jpg)

Without --shards it prepares 8,192 generated pictures. All deliver uint8 batches; `float` adds flip, conversion and
scaling. Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from data_prep.arrays import array_source
from data_prep.beton import jpeg
from data_prep.writer import write_split
from dtrain.data.build import build_loader
from dtrain.data.shards import Split, open_split
from dtrain.data.stream import ShardLoader

LOADERS: dict[str, dict[str, Any]] = {
    "resident": {"name": "resident"},
    "resident_mapped": {"name": "resident", "memory_map": True},
    "ffcv": {"name": "ffcv"},
    "ffcv_jpg": {"name": "ffcv", "encoding": "jpg"},
    "dali": {"name": "dali"},
}


def generated(folder: Path, count: int, size: int) -> Split:
    """Smooth random pictures, so that their JPEG files are about as large as a photograph's."""
    rng = np.random.default_rng(0)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for row in images:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        row[:] = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    labels = np.zeros(count, dtype=np.int64)
    source = array_source(images, labels, {"what": "generated"}, None, "picture")
    write_split(folder / "shards", source, ("npy", "beton", "jpg"))
    return open_split(folder / "shards")


def image_folder(folder: Path, split: Split, batch_size: int) -> Callable[[], Iterator[Any]]:
    """The baseline: the same pictures as JPEG files in a class folder, two worker processes."""
    (folder / "tree" / "all").mkdir(parents=True)
    for i, row in enumerate(split.images):
        (folder / "tree" / "all" / f"{i:06d}.jpg").write_bytes(jpeg(row))
    data = ImageFolder(str(folder / "tree"), PILToTensor())
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def stream() -> Iterator[Any]:
        while True:
            yield from loader

    return stream


def bare_gather(split: Split, batch_size: int) -> Iterator[None]:
    """What resident cannot beat: rows in a known order copied into one buffer."""
    images, out = np.array(split.images), np.empty((batch_size, *split.images.shape[1:]), dtype=np.uint8)
    steps = len(split) // batch_size
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(len(split))
        for step in range(steps):
            np.take(images, order[step * batch_size : (step + 1) * batch_size], axis=0, out=out, mode="clip")
            yield None


def rate(stream: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Images/s over about `seconds`."""
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        next(stream)
        steps += 1
    return steps * batch_size / spent


def measure(split: Split, folder: Path, batch_size: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Medians over `repeats` rounds; every round runs every loader once, so that they share the machine's mood."""
    streams: dict[str, Iterator[Any]] = {}
    floats: dict[str, Iterator[Any]] = {}
    first: dict[str, float] = {}
    for label, options in LOADERS.items():
        begin = time.perf_counter()
        loader = build_loader(split=split, batch_size=batch_size, value_range=(-1.0, 1.0), flip=True, **options)
        assert isinstance(loader, ShardLoader)
        streams[label], floats[label] = loader.images(loader.plan()), loader.batches()
        next(streams[label])
        first[label] = time.perf_counter() - begin
        print(f"{label}: first batch after {first[label]:.2f} s", file=sys.stderr)
    streams["bare_gather"] = bare_gather(split, batch_size)
    begin = time.perf_counter()
    streams["baseline"] = image_folder(folder, split, batch_size)()
    begin = time.perf_counter()
    next(streams["baseline"])
    first["baseline"] = time.perf_counter() - begin
    for label in LOADERS:  # one whole epoch: every row is checked on its first visit
        for _ in range(-(-len(split) // batch_size)):
            next(streams[label])
    rates: dict[str, list[float]] = {name: [] for name in (*streams, *(f"{label}_float" for label in floats))}
    turns = [("bare_gather", streams.pop("bare_gather")), *streams.items()]  # beside resident, which it measures
    turns += [(f"{label}_float", stream) for label, stream in floats.items()]
    for repeat in range(repeats):
        for name, stream in turns if repeat % 2 else reversed(turns):
            rates[name].append(rate(stream, batch_size, seconds))
        shown = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
        print(f"round {repeat + 1}/{repeats}, images/s: {shown}", file=sys.stderr)
    return {"rates": {n: statistics.median(v) for n, v in rates.items()}, "first": first, "rounds": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="a split with npy, beton and jpg")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per loader and round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = open_split(args.shards) if args.shards else generated(folder, 8192, 64)
        found = measure(split, folder, args.batch_size, args.repeats, args.seconds)
    rates, rounds = found["rates"], found["rounds"]

    def ratio(top: str, bottom: str) -> float:
        """Median of the rounds' own ratios."""
        return round(statistics.median(a / b for a, b in zip(rounds[top], rounds[bottom], strict=True)), 3)

    result = {
        "ratio": {label: ratio(label, "baseline") for label in LOADERS},
        "ratio_to_bare_gather": ratio("resident", "bare_gather"),
        "baseline_images_per_s": round(rates["baseline"]),
        "images_per_s": {name: round(value) for name, value in rates.items()},
        "first_batch_s": {name: round(value, 3) for name, value in found["first"].items()},
        "batch_size": args.batch_size,
        "image_shape": split.image_shape,
        "samples": len(split),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
