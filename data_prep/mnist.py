"""MNIST and Fashion-MNIST: four idx files each, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from data_prep.arrays import array_source
from data_prep.files import described, find
from data_prep.source import Pixels, Source, SourceError

DIGITS = [str(c) for c in range(10)]
FASHION = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def read_idx(file: Path) -> Pixels:
    """An idx file of unsigned bytes, any rank. SourceError if it is cut or something else."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise SourceError(f"{file} is not a complete gzip file ({e}): download it again") from e
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise SourceError(f"{file} is not an idx file of unsigned bytes: download it again")
    rank = content[3]
    shape = np.frombuffer(content[4 : 4 + 4 * rank], dtype=">u4").astype(np.int64)
    data = np.frombuffer(content[4 + 4 * rank :], dtype=np.uint8)
    if len(shape) != rank or len(data) != shape.prod():
        raise SourceError(f"{file} holds {len(data)} bytes of data, its header says {shape}: download it again")
    return data.reshape(shape)


def splits(source: Path, size: int | None, class_names: list[str] = DIGITS) -> dict[str, Source]:
    """28 × 28, or resized to size."""
    result = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files = [
            find(source, f"{prefix}-{kind}-ubyte.gz", f"{prefix}-{kind}-ubyte")
            for kind in ("images-idx3", "labels-idx1")
        ]
        images, labels = (read_idx(f) for f in files)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise SourceError(f"{files[0]} has shape {images.shape}, {files[1]} {labels.shape}: not a pair")
        about = {"files": described(*files), "class_names": class_names}
        result[split] = array_source(images[..., None], labels, about, size, split)
    return result
