"""The whole split as one uint8 tensor on the device: the fastest loader wherever the data fits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dtrain.data.batch import Batch, horizontal_flip, to_float
from dtrain.data.order import Indices, Order, positions
from dtrain.data.shards import Split
from dtrain.noise import Noise


class ResidentLoader:
    """Endless batches from any position, and one ordered pass for evaluation."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        value_range: tuple[float, float],
        seed: int = 0,
        flip: bool = False,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.split, self.batch_size, self.value_range = split, batch_size, value_range
        self.seed, self.flip, self.rank, self.world, self.device = seed, flip, rank, world, device
        self.images = torch.from_numpy(np.array(split.images)).to(device)
        self.arrays = {name: torch.from_numpy(np.array(a)).to(device) for name, a in split.arrays.items()}

    def __len__(self) -> int:
        return len(self.split)

    def _batch(self, indices: Indices, at: Indices, seed: int, flip: bool) -> Batch:
        rows = torch.from_numpy(indices).to(self.device)
        noise = Noise(seed, torch.from_numpy(at).to(self.device))
        x = to_float(self.images.index_select(0, rows), self.value_range)
        side: dict[str, Tensor] = {name: a.index_select(0, rows) for name, a in self.arrays.items()}
        return Batch(horizontal_flip(x, noise) if flip else x, noise, **side)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """This rank's batches from position `start` on, without end: B / world rows each."""
        order = Order(len(self), self.seed)
        while True:
            at = positions(start, self.batch_size, self.rank, self.world)
            yield self._batch(order.indices(at), at, self.seed, self.flip)
            start += self.batch_size

    def once(self) -> Iterator[Batch]:
        """Every sample exactly once over all ranks, as they lie, in near-equal global batches."""
        steps = -(-len(self) // self.batch_size)
        bounds = np.linspace(0, len(self), steps + 1).astype(np.int64)
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            at = positions(int(begin), int(end - begin), self.rank, self.world)
            yield self._batch(at, at, seed=0, flip=False)
