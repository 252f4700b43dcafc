"""Samples that the original files hold as raw pixel arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.images import fit_rows
from data_prep.source import Pixels, Source


@dataclass
class ArrayReader:
    """Rows of uint8 [N, H, W, C], resized where a size is asked for."""

    images: Pixels
    size: int

    def __call__(self, sample: int) -> Pixels:
        return fit_rows(self.images[sample], self.size)


def array_source(
    images: Pixels, labels: npt.NDArray[Any], about: Mapping[str, Any], size: int | None, prefix: str
) -> Source:
    """images uint8 [N, H, W, C] (square), labels integer [N]; samples are called prefix[0], prefix[1], …"""
    side = size or images.shape[1]
    resize = "none" if side == images.shape[1] else f"PIL bicubic to {side}"
    return Source(
        names=[f"{prefix}[{i}]" for i in range(len(images))],
        read=ArrayReader(images, side),
        shape=(side, side, images.shape[3]),
        arrays={"labels": labels.astype(np.int64)},
        about={**about, "crop": "none", "resize": resize},
    )
