"""The whole split as one uint8 tensor on the device: the fastest loader wherever the data fits.

With memory_map=true the rows stay in images.npy and a thread gathers them ahead: for sets larger than memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.data.checksums import RowGuard
from dtrain.data.gather import Gather
from dtrain.data.prefetch import prefetch
from dtrain.data.shards import Split
from dtrain.data.stream import Rows, ShardLoader, Spec

_PIECE = 1024  # rows copied and checked at a time on loading
_DEPTH = 4  # batches that a memory-mapped stream holds


class ResidentLoader(ShardLoader):
    """Gathers rows from the device's memory, or from the file's pages."""

    def __init__(self, split: Split, spec: Spec, *, memory_map: bool = False) -> None:
        super().__init__(split, spec)
        self.memory_map = memory_map
        self.guard = RowGuard(split, "images.npy", again=memory_map)
        self.host = split.images if memory_map else self._load()
        self.on_host = memory_map or torch.device(spec.device).type == "cpu"
        if not self.on_host:
            self.pixels = torch.from_numpy(self.host).to(spec.device)
            del self.host

    def _load(self) -> npt.NDArray[np.uint8]:
        """The whole split in memory, every row checked while it is in the cache."""
        pixels = np.empty(self.split.images.shape, dtype=np.uint8)
        for begin in range(0, len(pixels), _PIECE):
            piece = pixels[begin : begin + _PIECE]
            piece[:] = self.split.images[begin : begin + _PIECE]
            self.guard.check(np.arange(begin, begin + len(piece)), piece)
        return pixels

    def images(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, Tensor], None, None]:
        if not self.on_host:
            for rows in plan:
                yield rows, self.pixels.index_select(0, self.transfer(rows.indices))
            return
        stream = prefetch(self._gather(plan, _DEPTH), _DEPTH) if self.memory_map else self._gather(plan, 1)
        for rows, pixels in stream:
            yield rows, self.transfer(pixels)

    def _gather(
        self, plan: Iterator[Rows], buffers: int
    ) -> Generator[tuple[Rows, npt.NDArray[np.uint8]], None, None]:
        gather = Gather(self.host, self.rows_per_step, buffers)
        for rows in plan:
            pixels = gather(rows.indices)
            self.guard.check(rows.indices, pixels)
            yield rows, pixels
