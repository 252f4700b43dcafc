"""The whole split as one uint8 tensor on the device: the fastest loader wherever the data fits.

With memory_map=true the rows stay in images.npy and a thread gathers them ahead: for sets larger than memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.data.checksums import RowGuard
from dtrain.data.gather import Gather
from dtrain.data.order import Indices, Order
from dtrain.data.prefetch import prefetch
from dtrain.data.shards import Split
from dtrain.data.stream import Rows, ShardLoader, Spec
from dtrain.data.transfer import Transfer

_PIECE = 1024  # rows copied and checked at a time on loading
_DEPTH = 4  # batches that a memory-mapped stream holds


class PlacedOrder:
    """The order on a device: two epochs' permutations lie there, and a step's rows are slices of them."""

    def __init__(self, order: Order, transfer: Transfer) -> None:
        self._order, self._transfer = order, transfer
        self._held: dict[int, Tensor] = {}

    def __call__(self, at: Indices) -> tuple[Tensor, Tensor]:
        """(positions, samples), int64 [B] each, of equally spaced positions; nothing is sent but once an epoch."""
        count, step = self._order.count, int(at[1] - at[0]) if len(at) > 1 else 1
        first, last = int(at[0]), int(at[-1])
        parts = []
        for epoch in range(first // count, last // count + 1):
            inside = at[(at >= epoch * count) & (at < (epoch + 1) * count)] - epoch * count
            if len(inside):  # none where the ranks are more than the samples
                parts.append(self._permutation(epoch)[int(inside[0]) : int(inside[-1]) + 1 : step])
        indices = parts[0] if len(parts) == 1 else torch.cat(parts)
        return torch.arange(first, last + 1, step, device=self._transfer.device), indices

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._held:
            self._held = {k: v for k, v in self._held.items() if k == epoch - 1}
            self._held[epoch] = self._transfer(self._order.permutation(epoch))
        return self._held[epoch]


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

    def plan(self, start: int = 0) -> Iterator[Rows]:
        rows = super().plan(start)
        if self.on_host:
            return rows
        order = PlacedOrder(Order(len(self), self.spec.seed), self.transfer)
        return (replace(r, placed=order(r.at)) for r in rows)

    def images(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, Tensor], None, None]:
        if not self.on_host:
            for rows in plan:
                indices = rows.placed[1] if rows.placed else self.transfer(rows.indices)
                yield rows, self.pixels.index_select(0, indices)
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
