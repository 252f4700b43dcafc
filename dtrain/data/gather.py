"""Copies picked rows into a ring of buffers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dtrain.data.order import Indices


class Gather:
    """A batch of `images` by index. It stays valid until `buffers` further calls.

    Fresh memory for each batch would cost several times the copy itself (page faults). numpy's take, because
    torch's gather on two threads drops to a third on a busy machine.
    """

    def __init__(self, images: npt.NDArray[np.uint8], rows: int, buffers: int) -> None:
        self.images, self.count = images, 0
        self.ring = np.empty((buffers, rows, *images.shape[1:]), dtype=np.uint8)

    def __call__(self, indices: Indices) -> npt.NDArray[np.uint8]:
        """indices int64 [B], in range, to uint8 [B, H, W, C]."""
        out = self.ring[self.count % len(self.ring), : len(indices)]
        self.count += 1
        # mode="clip" writes straight into out, where "raise" buffers
        return np.take(self.images, indices, axis=0, out=out, mode="clip")
