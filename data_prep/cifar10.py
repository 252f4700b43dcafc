"""CIFAR-10: the python batches (folder or cifar-10-python.tar.gz), or class folders of images."""

from __future__ import annotations

import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.arrays import array_source, whole_numbers
from data_prep.files import LIMIT, TooLargeError, described, locate_tree, read, read_stream
from data_prep.folder import class_folders
from data_prep.source import Pixels, Source, SourceError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TAR_LIMIT = 1 << 28  # bytes of the archive, unpacked: the original has 186 million
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any code on loading; these hold only arrays, lists and strings."""

    encoded = 0  # bytes: a pickle may encode one long string a thousand times

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return super().find_class(module, name)

    def _encode(self, text: str, coding: str) -> bytes:
        """Bytes, as Python 3 writes them for Python 2."""
        self.encoded += len(text)
        if coding != "latin1" or self.encoded > LIMIT:
            raise pickle.UnpicklingError(f"encodes {coding}, {self.encoded:,} characters: the limit is {LIMIT:,}")
        return text.encode(coding)


def _unpickle(content: bytes, name: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """images uint8 [N, 32, 32, 3] and labels of one batch."""
    try:
        batch = _ArraysOnly(BytesIO(content), encoding="bytes").load()
        images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(batch[b"labels"])
    except Exception as e:  # damaged pickles raise almost anything
        raise SourceError(f"{name} cannot be read ({type(e).__name__}: {e}): download it again") from e
    if not len(images) or labels.shape != (len(images),) or images.dtype != np.uint8:
        raise SourceError(
            f"{name} has {len(images)} {images.dtype} images and labels {labels.shape}: download it again"
        )
    return images, whole_numbers(labels, 0, len(CLASSES) - 1, f"{name}: the labels")


def _batch_files(source: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Contents of the six batches by name, and the files they come from."""
    names = [name for group in BATCHES.values() for name in group]
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    files = [folder / name for name in names]
    archive = source if source.is_file() else source / ARCHIVE
    if not archive.is_file() or any(f.is_file() for f in files):
        return {f.name: read(f) for f in files}, files
    return _archived(archive, names), [archive]


def _archived(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The batches in the .tar.gz. It is unpacked in memory: tarfile itself would read headers of any length."""
    content = BytesIO(read(archive, TAR_LIMIT))
    batches: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if folder != FOLDER or name not in names:
                    continue
                stream = tar.extractfile(member) if member.isreg() and name not in batches else None
                if stream is None:
                    raise SourceError(f"{archive}: {name} is no ordinary file, or there twice: download it again")
                batches[name] = read_stream(stream, LIMIT)
    except (tarfile.TarError, ValueError, EOFError, OSError, TooLargeError) as e:
        raise SourceError(f"{archive} is not the complete archive ({e}): download it again") from e
    absent = [name for name in names if name not in batches]
    if absent:
        raise SourceError(f"{archive} is not the complete archive ({absent[0]} is missing): download it again")
    return batches


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
