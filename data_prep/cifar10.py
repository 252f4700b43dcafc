"""CIFAR-10: the python batches (folder or cifar-10-python.tar.gz), or class folders of images."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import array_source
from data_prep.files import described, locate_tree
from data_prep.folder import class_folders
from data_prep.source import Pixels, Source, SourceError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any code on loading; these hold only arrays, lists and strings."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return super().find_class(module, name)


def _unpickle(content: bytes, name: str) -> tuple[Pixels, list[int]]:
    """images uint8 [N, 32, 32, 3] and labels of one batch."""
    try:
        batch = _ArraysOnly(BytesIO(content), encoding="bytes").load()
        images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = [int(c) for c in batch[b"labels"]]
    except Exception as e:  # damaged pickles raise almost anything
        raise SourceError(f"{name} cannot be read ({type(e).__name__}: {e}): download it again") from e
    if len(images) != len(labels) or images.dtype != np.uint8:
        raise SourceError(
            f"{name} has {len(images)} {images.dtype} images and {len(labels)} labels: download it again"
        )
    return images, labels


def _batch_files(source: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Contents of the six batches by name, and the files they come from."""
    names = [name for group in BATCHES.values() for name in group]
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    files = [folder / name for name in names]
    archive = source if source.is_file() else source / ARCHIVE
    if not archive.is_file() or any(f.is_file() for f in files):
        absent = [f for f in files if not f.is_file()]
        if absent:
            raise SourceError(f"{absent[0]} is missing: unpack {ARCHIVE} again")
        return {f.name: f.read_bytes() for f in files}, files
    try:
        with tarfile.open(archive) as tar:
            members = {name: tar.extractfile(f"{FOLDER}/{name}") for name in names}
            return {name: f.read() for name, f in members.items() if f is not None}, [archive]
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as e:
        raise SourceError(f"{archive} is not the complete archive ({e}): download it again") from e


def _is_python_version(source: Path) -> bool:
    if source.is_file():
        return source.name.endswith(".tar.gz")
    return any((source / name).exists() for name in (FOLDER, ARCHIVE, "data_batch_1", "test_batch"))


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """32 × 32, or resized to size."""
    if not _is_python_version(source):
        return class_folders(locate_tree(source), size or 32)
    contents, files = _batch_files(source)
    about = {"files": described(*files), "class_names": CLASSES}
    result = {}
    for split, names in BATCHES.items():
        parts = [_unpickle(contents[name], name) for name in names]
        images, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        result[split] = array_source(images, labels, about, size, split)
    return result
