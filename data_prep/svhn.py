"""SVHN, cropped digits: train_32x32.mat + extra_32x32.mat as one training split, test_32x32.mat; label 10 is 0.

The validation split is the last of train_32x32.mat, whose digits are as hard as the test split's; extra's are easier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.arrays import array_source, whole_numbers
from data_prep.files import WHOLE_LIMIT, described, find
from data_prep.holdout import validation_size
from data_prep.mat import load_mat
from data_prep.source import Pixels, Source, SourceError


def _read(file: Path) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """images uint8 [N, H, W, 3], labels int64 [N] in 0..9."""
    content = load_mat(file, WHOLE_LIMIT, "X", "y")
    images = content["X"]
    if images.ndim != 4 or images.shape[0] != images.shape[1] or images.shape[2] != 3 or images.dtype != np.uint8:
        raise SourceError(
            f"{file}: X is {images.dtype} {images.shape}, expected uint8 [side, side, 3, N]: download it again"
        )
    labels = whole_numbers(content["y"], 1, 10, f"{file}: the labels y")
    if len(labels) != images.shape[3]:
        raise SourceError(f"{file} has {images.shape[3]} images and {len(labels)} labels: download it again")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """32 × 32, or resized to size."""
    train, extra, test = (find(source, f"{part}_32x32.mat") for part in ("train", "extra", "test"))
    parts = [_read(train), _read(extra)]
    if parts[0][0].shape[1:] != parts[1][0].shape[1:]:
        raise SourceError(f"{extra} has images of another size than {train.name}: download both again")
    images, labels = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    held_out = _read(test)
    classes = {"class_names": [str(c) for c in range(10)]}
    about = {"files": described(train, extra), "parts": {"train": len(parts[0][1]), "extra": len(parts[1][1])}}
    whole, end = array_source(images, labels, {**about, **classes}, size, "train+extra"), len(parts[0][1])
    rows = np.arange(len(whole))
    valid = (rows >= end - validation_size(end)) & (rows < end)
    return {
        "train": whole.part(rows[~valid]),
        "valid": whole.part(rows[valid]),
        "test": array_source(*held_out, {"files": described(test), **classes}, size, "test"),
    }
