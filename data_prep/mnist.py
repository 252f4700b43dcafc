"""MNIST and Fashion-MNIST: four idx files each, gzipped or not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from data_prep.arrays import array_source, whole_numbers
from data_prep.files import WHOLE_LIMIT, described, find, opened, read_stream
from data_prep.source import Pixels, Source, SourceError

DIGITS = [str(c) for c in range(10)]
FASHION = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def read_idx(file: Path, rank: int) -> Pixels:
    """An idx file of unsigned bytes with `rank` axes. SourceError if it is cut, empty or something else."""
    with opened(file) as stream:
        head = stream.read(4 + 4 * rank)
        if len(head) < 4 + 4 * rank or head[:4] != bytes([0, 0, 8, rank]):
            raise SourceError(f"{file} is not an idx file of unsigned bytes with {rank} axes: download it again")
        shape = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
        promised = math.prod(shape)
        if not 0 < promised <= WHOLE_LIMIT:
            raise SourceError(
                f"{file}: its header promises {shape} bytes, none or more than the limit of {WHOLE_LIMIT:,}: "
                "download it again"
            )
        data = read_stream(stream, promised)
    if len(data) < promised:
        raise SourceError(f"{file} holds {len(data)} bytes of data, its header says {shape}: download it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def splits(source: Path, size: int | None, class_names: list[str] = DIGITS) -> dict[str, Source]:
    """28 × 28, or resized to size."""
    result = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files = [
            find(source, f"{prefix}-{kind}-ubyte.gz", f"{prefix}-{kind}-ubyte")
            for kind in ("images-idx3", "labels-idx1")
        ]
        images = read_idx(files[0], 3)
        labels = whole_numbers(read_idx(files[1], 1), 0, len(class_names) - 1, f"{files[1]}: the labels")
        if len(labels) != len(images):
            raise SourceError(
                f"{files[0]} has {len(images)} images, {files[1]} {len(labels)} labels: download both again"
            )
        about = {"files": described(*files), "class_names": class_names}
        result[split] = array_source(images[..., None], labels, about, size, split)
    return result
