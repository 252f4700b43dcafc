"""Samples that the original files hold as arrays: raw pixels, class numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.images import fit_rows
from data_prep.source import Pixels, Source, SourceError


@dataclass
class ArrayReader:
    """Rows of uint8 [N, H, W, C], cropped and resized where they are not of the size."""

    images: Pixels
    size: int

    def __call__(self, sample: int) -> Pixels:
        return fit_rows(self.images[sample], self.size)


def whole_numbers(values: npt.ArrayLike, low: int, high: int, what: str) -> npt.NDArray[np.int64]:
    """int64 [N] of numbers of any type. SourceError unless each is one of low..high; `what` names file and values."""
    numbers = np.asarray(values).ravel()
    if numbers.dtype.kind not in "uif":
        raise SourceError(f"{what} are not numbers but {numbers.dtype}: download the file again")
    bad = ~((numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers)))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise SourceError(f"{what} must lie in {low}..{high}, number {at} is {numbers[at]}: download the file again")
    return numbers.astype(np.int64)


def array_source(
    images: Pixels, labels: npt.NDArray[np.int64], about: Mapping[str, Any], size: int | None, prefix: str
) -> Source:
    """images uint8 [N, H, W, C], labels int64 [N]; samples are called prefix[0], prefix[1], …"""
    height, width = images.shape[1:3]
    shorter = min(height, width)
    side = size or shorter
    crop = "none" if height == width else "centre square"
    resize = "none" if side == shorter else f"PIL bicubic to {side}"
    return Source(
        names=[f"{prefix}[{i}]" for i in range(len(images))],
        read=ArrayReader(images, side),
        shape=(side, side, images.shape[3]),
        arrays={"labels": labels.astype(np.int64)},
        about={**about, "crop": crop, "resize": resize},
    )
