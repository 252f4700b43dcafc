"""The on-disk format of a prepared data set: shards/<name>/<split>/ with images.npy and manifest.json.

images.npy is uint8 [N, H, W, C], labels.npy int64 [N], attributes.npy uint8 [N, A], embeddings.npy float32
[N, E]; only the first must exist. The manifest names what they were made from and the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SIDE_ARRAYS = ("labels", "attributes", "embeddings")


class ShardError(Exception):
    """A shard folder is missing, incomplete or damaged; the message names the file and what to do."""


def sha256(path: Path) -> str:
    """Hex digest of a file, read in 1 MiB pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class Split:
    """An opened split: memory-mapped arrays and the manifest they were checked against."""

    path: Path
    images: npt.NDArray[np.uint8]
    arrays: dict[str, npt.NDArray[Any]]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.images.shape
        return channels, height, width


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a split folder. ShardError if there is none or it cannot be read."""
    file = path / MANIFEST
    if not file.is_file():
        raise ShardError(f"no shards in {path}: {MANIFEST} is missing")
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        version = manifest["format_version"]
    except (ValueError, KeyError) as e:
        raise ShardError(f"{file} is damaged ({e}): prepare the shards again") from e
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{file} has format {version}, this dtrain reads {FORMAT_VERSION}: prepare the shards again"
        )
    return manifest


def open_split(path: Path) -> Split:
    """Memory-maps a split and checks the size of every array (their contents: `data_prep verify`)."""
    manifest = read_manifest(path)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in ("images", *SIDE_ARRAYS):
        entry = manifest["files"].get(f"{name}.npy")
        if entry is None:
            continue
        file = path / f"{name}.npy"
        size = file.stat().st_size if file.is_file() else -1
        if size != entry["bytes"]:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise ShardError(f"{file} {found}, the manifest says {entry['bytes']}: prepare the shards again")
        arrays[name] = np.load(file, mmap_mode="r")
        if len(arrays[name]) != manifest["count"]:
            raise ShardError(f"{file} has {len(arrays[name])} rows, the manifest says {manifest['count']}")
    if "images" not in arrays:
        raise ShardError(f"{path / MANIFEST} lists no images.npy")
    return Split(path, arrays.pop("images"), arrays, manifest)
