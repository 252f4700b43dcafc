"""python -m dtrain.sample RUN --out DIR: images of a trained model as PNG files, and how they were made.

The n-th image is a function of weights, seed and n: any number of processes writes the same, and a killed command
continues when it is run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dtrain.config import ConfigError
from dtrain.files import read_json, replace_text
from dtrain.tensors import digest
from dtrain.trained import CHUNK, Trained, load

PROTOCOL, ARCHIVE = "protocol.json", "samples.npz"


@dataclass(frozen=True)
class Request:
    """What to sample. condition: a label for all, or the path of an array with a row for every image, cycled over."""

    run: Path
    out: Path
    seed: int
    prior: str | None
    condition: str | None
    device: str | None
    modules: tuple[str, ...]

    def model(self) -> Trained:
        return load(self.run, self.device, self.modules)


def write(request: Request, count: int, processes: int = 1, npz: bool = False) -> None:
    """Writes what is missing of `count` images. Raises ConfigError for a folder that holds others."""
    trained = request.model()
    protocol = protocol_of(request, trained)
    _conditions(trained, request.condition, 0)
    stored = read_json(request.out / PROTOCOL)
    if request.out.exists() and any(request.out.iterdir()) and not stored:
        raise ConfigError(f"--out {request.out}: holds something else; choose an empty folder")
    differing = [k for k, v in protocol.items() if stored.get(k, v) != v]
    if differing:
        k = differing[0]
        raise ConfigError(f"--out {request.out}: holds images of {k}={stored[k]}, not {protocol[k]}")
    request.out.mkdir(parents=True, exist_ok=True)
    replace_text(request.out / PROTOCOL, json.dumps({**protocol, "count": count}, indent=1) + "\n")
    missing = [begin for begin in range(0, count, CHUNK) if list(_missing(request.out, begin, count))]
    for done, _ in enumerate(_run(request, trained, count, missing, processes), start=1):
        print(f"\r{min(done * CHUNK, count):,} of {min(len(missing) * CHUNK, count):,} images", end="", flush=True)
    print(f"\n{count:,} images of {request.run} in {request.out}")
    if npz:
        files = (request.out / name(n) for n in range(count))
        arrays = np.stack([np.asarray(Image.open(file)) for file in files])
        np.savez(request.out / ARCHIVE, arrays.reshape(len(arrays), *arrays.shape[1:3], -1))


def protocol_of(request: Request, trained: Trained) -> dict[str, Any]:
    """What decides the images, and what they are."""
    return {
        "run": str(request.run),
        "model": trained.config.model["_target_"],
        "step": trained.step,
        "weights": digest(trained.algorithm, *trained.algorithm.groups),
        "prior": trained.prior(request.prior),
        "condition": request.condition,
        "seed": request.seed,
        "images": "PNG, 8 bits a channel, rounded, not resized",
        "shape": list(trained.config.data.image_shape),
        "torch": torch.__version__,
    }


def name(n: int) -> str:
    """The file of the n-th image."""
    return f"{n:08d}.png"


def _missing(out: Path, begin: int, count: int) -> Iterator[int]:
    return (n for n in range(begin, min(begin + CHUNK, count)) if not (out / name(n)).exists())


def _run(request: Request, trained: Trained, count: int, chunks: list[int], processes: int) -> Iterator[None]:
    if processes == 1:
        for begin in chunks:
            _chunk(trained, request, count, begin)
            yield
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    with context.Pool(processes, torch.set_num_threads, (threads,)) as pool:
        yield from pool.imap_unordered(partial(_of_worker, request, count), chunks)


@cache
def _loaded(request: Request) -> Trained:
    """Once in a process."""
    return request.model()


def _of_worker(request: Request, count: int, begin: int) -> None:
    _chunk(_loaded(request), request, count, begin)


def _chunk(trained: Trained, request: Request, count: int, begin: int) -> None:
    """A whole chunk is decoded whatever is missing of it: a batch of another size rounds differently."""
    condition = _conditions(trained, request.condition, begin)
    images = trained.sample(CHUNK, request.prior, condition, request.seed, begin)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for n in _missing(request.out, begin, count):
        _save(pixels[n - begin], request.out / name(n))


def _conditions(trained: Trained, given: str | None, begin: int) -> torch.Tensor | None:
    """Of a chunk's images: [CHUNK], [CHUNK, E], or None. Raises ConfigError."""
    kind = trained.algorithm.condition
    if given is None or kind is None:
        if kind or given is not None:
            what = {None: "nothing", "labels": "a label, or a file", "embeddings": "a file"}[kind]
            raise ConfigError(f"--condition: {type(trained.algorithm).__name__} is conditioned on {what}")
        return None
    try:
        every = np.asarray([int(given)] if given.isdecimal() else np.load(given, allow_pickle=False))
    except (OSError, ValueError) as e:
        raise ConfigError(f"--condition {given}: is no label and no .npy file ({e})") from e
    if every.ndim != (1 if kind == "labels" else 2) or not len(every):
        raise ConfigError(f"--condition {given}: must hold {kind}, one row for each image, got {list(every.shape)}")
    return torch.from_numpy(every[np.arange(begin, begin + CHUNK) % len(every)])


def _save(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    """Complete or not at all."""
    work = file.with_suffix(f".{os.getpid()}.tmp")
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(work, "png")
    work.rename(file)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dtrain.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, or a checkpoint in it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    parser.add_argument("--count", type=int, default=50000, help="images (default: 50,000, as FID is stated with)")
    parser.add_argument("--prior", help="generative model (default: the first)")
    parser.add_argument("--condition", help="a label, or a .npy file of labels or embeddings that is cycled over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="on the CPU")
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU where there is one)")
    parser.add_argument("--npz", action="store_true", help=f"also all of them in {ARCHIVE}: uint8 [N, H, W, C]")
    parser.add_argument("--model", action="append", default=[], help="module of a model outside dtrain.models")
    given = parser.parse_args()
    request = Request(
        given.run, given.out, given.seed, given.prior, given.condition, given.device, tuple(given.model)
    )
    try:
        if given.count < 1 or given.processes < 1:
            raise ConfigError("--count and --processes must be at least 1")
        write(request, given.count, given.processes, given.npz)
    except ConfigError as e:
        print(f"dtrain.sample: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
