"""The on-disk format of a prepared data set: shards/<name>/<split>/ with images.npy and manifest.json.

images.npy is uint8 [N, H, W, C] and checksums.npy uint64 [N] its rows' checksums; optional are labels.npy int64
[N], attributes.npy uint8 [N, A], embeddings.npy float32 [N, E], or [N, K, E] of K captions a sample, captions.json
(a list of sentences for each sample), and the images once more as raw.beton and jpg.beton (FFCV) or images.tar
(WebDataset). The manifest names what they were made from and the sha256 of every file, itself included.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrain.files import sha256

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
SIDE_ARRAYS = ("labels", "attributes", "embeddings")
AGAIN = "prepare the shards again"


class ShardError(Exception):
    """A shard folder is missing, incomplete or damaged; the message names the file and what to do."""


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Hex digest of a manifest's contents other than this digest."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """An opened split: memory-mapped images, the arrays that travel with them, and the manifest."""

    path: Path
    images: npt.NDArray[np.uint8]
    checksums: npt.NDArray[np.uint64]
    arrays: dict[str, npt.NDArray[Any]]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def class_names(self) -> list[str]:
        """Names of the labels' values; empty if there are none."""
        return list(self.manifest["source"].get("class_names", []))

    @property
    def attribute_names(self) -> list[str]:
        """Names of the attributes' columns; empty if there are none."""
        return list(self.manifest["source"].get("attribute_names", []))

    @property
    def content(self) -> str:
        """Hex digest of the pixels and of all that travels with them; other formats of the same do not change it."""
        files = {name: about["sha256"] for name, about in self.manifest["files"].items() if name.endswith(".npy")}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def encoder(self) -> str | None:
        """The sentence encoder that made the embeddings, if one did."""
        about = self.manifest["source"].get("embeddings")
        return about.get("encoder") if isinstance(about, dict) else None

    def captions(self) -> list[list[str]] | None:
        """The sentences of each sample, hashed; None if there are none."""
        if "captions.json" not in self.manifest["files"]:
            return None
        found: list[list[str]] = json.loads(_hashed(self.path, "captions.json", self.manifest).read_bytes())
        return found

    def file(self, name: str, format_name: str) -> Path:
        """Path of an optional file, of the size the manifest says. ShardError if it is not there."""
        if name not in self.manifest["files"]:
            raise ShardError(
                f"{self.path} has no {name}: prepare the shards again with {format_name} among --formats"
            )
        return checked_file(self.path, name, self.manifest["files"][name])

    def load(self, name: str) -> npt.NDArray[Any]:
        """An optional array of N rows, hashed."""
        return _load_hashed(self.path, name, self.manifest)


def _load_hashed(path: Path, name: str, manifest: dict[str, Any]) -> npt.NDArray[Any]:
    """A whole array, or ShardError if the file is not byte for byte as prepared."""
    file = _hashed(path, name, manifest)
    array: npt.NDArray[Any] = np.load(file)
    if len(array) != manifest["count"]:
        raise ShardError(f"{file} has {len(array)} rows, the manifest says {manifest['count']}: {AGAIN}")
    return array


def _hashed(path: Path, name: str, manifest: dict[str, Any]) -> Path:
    """path/name, once it is byte for byte as prepared."""
    entry = manifest["files"][name]
    file = checked_file(path, name, entry)
    if sha256(file) != entry["sha256"]:
        raise ShardError(f"{file} is damaged (sha256 does not match): {AGAIN}")
    return file


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a split folder. ShardError if there is none or it cannot be read."""
    file = path / MANIFEST
    if not file.is_file():
        raise ShardError(f"no shards in {path}: {MANIFEST} is missing")
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        version, digest = manifest["format_version"], manifest.get("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ShardError(f"{file} is damaged ({e}): {AGAIN}") from e
    if version != FORMAT_VERSION:
        raise ShardError(f"{file} has format {version}, this dtrain reads {FORMAT_VERSION}: {AGAIN}")
    if digest != manifest_digest(manifest):
        raise ShardError(f"{file} is damaged (its own sha256 does not match): {AGAIN}")
    return manifest


def checked_file(path: Path, name: str, entry: dict[str, Any]) -> Path:
    """path/name, once its size is the one of its manifest entry."""
    file = path / name
    size = file.stat().st_size if file.is_file() else -1
    if size != entry["bytes"]:
        found = "is missing" if size < 0 else f"has {size} bytes"
        raise ShardError(f"{file} {found}, the manifest says {entry['bytes']}: {AGAIN}")
    return file


def _map_images(path: Path, manifest: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Memory-maps the images; their contents are checked row by row when they are read."""
    file = checked_file(path, "images.npy", manifest["files"]["images.npy"])
    try:
        images: npt.NDArray[np.uint8] = np.load(file, mmap_mode="r")
    except Exception as e:  # numpy parses the header as Python: damage raises almost anything
        raise ShardError(f"{file} is damaged ({e}): {AGAIN}") from e
    wanted = (manifest["count"], *manifest["image_shape"])
    at_end = isinstance(images, np.memmap) and images.offset + images.nbytes == file.stat().st_size
    if images.shape != wanted or images.dtype != np.uint8 or not images.flags.c_contiguous or not at_end:
        raise ShardError(
            f"{file} has a damaged header: it says {images.dtype} {images.shape}, the manifest {wanted}: {AGAIN}"
        )
    return images


def open_split(path: Path) -> Split:
    """Maps the images and loads the small arrays, hashed (every other content: `data_prep verify`)."""
    manifest = read_manifest(path)
    missing = [name for name in ("images.npy", "checksums.npy") if name not in manifest["files"]]
    if missing:
        raise ShardError(f"{path / MANIFEST} lists no {', '.join(missing)}: {AGAIN}")
    images, checksums = _map_images(path, manifest), _load_hashed(path, "checksums.npy", manifest)
    present = [name for name in SIDE_ARRAYS if f"{name}.npy" in manifest["files"]]
    arrays = {name: _load_hashed(path, f"{name}.npy", manifest) for name in present}
    return Split(path, images, checksums, arrays, manifest)
