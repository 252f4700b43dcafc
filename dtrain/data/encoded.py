"""Encoded images inside a container file (jpg.beton, images.tar) by sample index, checked before decoding."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from dtrain.data.order import Indices
from dtrain.data.shards import AGAIN, ShardError, Split


class Encoded:
    """<name>.index.npy is int64 [N, 3]: where each sample's bytes start in `name`, how many, and their crc32."""

    def __init__(self, split: Split, name: str, format_name: str) -> None:
        self.file = split.file(name, format_name)
        self.index = split.load(f"{name}.index.npy")
        self.bytes = np.memmap(self.file, dtype=np.uint8, mode="r")

    def read(self, indices: Indices) -> list[npt.NDArray[np.uint8]]:
        """Each sample's bytes, uint8 [bytes]. ShardError names a damaged one: decoders crash on, or hide, damage."""
        found = []
        for sample, (offset, size, crc) in zip(indices, self.index[indices], strict=True):
            image = self.bytes[offset : offset + size]
            if zlib.crc32(image.data) != crc:
                raise ShardError(f"{self.file} is damaged: sample {sample} is not as prepared; {AGAIN}")
            found.append(image)
        return found
