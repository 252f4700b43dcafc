"""SVHN, cropped digits: train_32x32.mat + extra_32x32.mat as one training split, test_32x32.mat; label 10 is 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.arrays import array_source
from data_prep.files import described, find
from data_prep.source import Pixels, Source, SourceError


def load_mat(file: Path, *variables: str) -> Mapping[str, npt.NDArray[Any]]:
    """The named variables of a MATLAB file of version 5 to 7. SourceError if it is cut, damaged or lacks one."""
    from scipy.io import loadmat

    try:
        content: Mapping[str, npt.NDArray[Any]] = loadmat(file)
    except NotImplementedError as e:
        raise SourceError(f"{file} is a v7.3 (HDF5) file: save it again with -v7 in MATLAB") from e
    except Exception as e:  # scipy's reader raises a dozen types on damaged files
        raise SourceError(f"{file} cannot be read ({type(e).__name__}: {e}): download it again") from e
    for variable in variables:
        if variable not in content:
            raise SourceError(f"{file} has no variable {variable}: is it the original file?")
    return content


def _read(file: Path) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """images uint8 [N, H, W, 3], labels int64 [N] in 0..9."""
    content = load_mat(file, "X", "y")
    images, labels = content["X"], content["y"].ravel().astype(np.int64)
    if images.ndim != 4 or images.shape[0] != images.shape[1] or images.shape[2] != 3 or images.dtype != np.uint8:
        raise SourceError(f"{file}: X is {images.dtype} {images.shape}, expected uint8 [side, side, 3, N]")
    if len(labels) != images.shape[3]:
        raise SourceError(f"{file} has {images.shape[3]} images and {len(labels)} labels: download it again")
    if labels.min() < 1 or labels.max() > 10:
        raise SourceError(f"{file} has labels {labels.min()}..{labels.max()}, expected 1..10")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """32 × 32, or resized to size."""
    train, extra, test = (find(source, f"{part}_32x32.mat") for part in ("train", "extra", "test"))
    parts = [_read(train), _read(extra)]
    images, labels = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    held_out = _read(test)
    classes = {"class_names": [str(c) for c in range(10)]}
    about = {"files": described(train, extra), "parts": {"train": len(parts[0][1]), "extra": len(parts[1][1])}}
    return {
        "train": array_source(images, labels, {**about, **classes}, size, "train+extra"),
        "test": array_source(*held_out, {"files": described(test), **classes}, size, "test"),
    }
