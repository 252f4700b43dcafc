"""Compares every file of prepared shards with its manifest, and names the damaged samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dtrain.data.checksums import row_checksums
from dtrain.data.shards import MANIFEST, ShardError, checked_file, read_manifest
from dtrain.files import sha256

_PIECE = 1024
_SHOWN = 10


def find_splits(path: Path) -> list[Path]:
    """`path` itself, or the splits in it. ShardError if there are none."""
    if (path / MANIFEST).exists():
        return [path]
    splits = sorted(m.parent for m in path.glob(f"*/{MANIFEST}"))
    if not splits:
        raise ShardError(f"no shards in {path}: neither {MANIFEST} nor */{MANIFEST} is there")
    return splits


def damaged_samples(split: Path) -> list[int]:
    """Samples of images.npy whose row is not the one that was written."""
    try:
        images = np.load(split / "images.npy", mmap_mode="r")
        checksums = np.load(split / "checksums.npy")
    except Exception:  # a damaged header raises almost anything; the hashes have found it already
        return []
    if images.dtype != np.uint8 or len(images) != len(checksums):
        return []
    pieces = range(0, len(images), _PIECE)
    wrong = [i + np.flatnonzero(row_checksums(images[i : i + _PIECE]) != checksums[i : i + _PIECE]) for i in pieces]
    return np.concatenate(wrong).tolist() if wrong else []


def verify_split(split: Path) -> list[str]:
    """What is wrong with a split, one line per file; empty if every byte is as it was written."""
    try:
        manifest = read_manifest(split)
    except ShardError as e:
        return [str(e)]
    problems = []
    for name, entry in manifest["files"].items():
        try:
            file = checked_file(split, name, entry)
        except ShardError as e:
            problems.append(str(e))
            continue
        if sha256(file) != entry["sha256"]:
            samples = damaged_samples(split) if name == "images.npy" else []
            more = ", …" if len(samples) > _SHOWN else ""
            where = f" at samples {', '.join(map(str, samples[:_SHOWN]))}{more}" if samples else ""
            problems.append(f"{file} is damaged{where}: its sha256 is not the manifest's")
    unlisted = sorted(f.name for f in split.iterdir() if f.name not in (*manifest["files"], MANIFEST))
    return problems + [f"{split / name} is not in the manifest" for name in unlisted]


def summary(split: Path) -> str:
    """One line: what the split holds."""
    manifest = json.loads((split / MANIFEST).read_text())
    size = "×".join(map(str, manifest["image_shape"]))
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    left_out = f", {len(manifest['left_out'])} left out" if manifest["left_out"] else ""
    return f"{split}: {manifest['count']} images of {size}{left_out}, {total / 1e6:.1f} MB"
