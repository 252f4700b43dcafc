"""What every loader shares: the plan of who reads which sample when, and the way from pixels to a batch.

A backend only turns a plan (sample indices, step by step) into uint8 rows; order, sharding over ranks, noise,
flips, scaling and the arrays that travel with the images are decided here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dtrain.data.batch import Batch, captions, flipped, to_float
from dtrain.data.order import Indices, Order, positions
from dtrain.data.shards import Split
from dtrain.data.transfer import Transfer
from dtrain.noise import Noise


@dataclass(frozen=True)
class Spec:
    """What a loader is asked to deliver: global batches of `batch_size`, of which each rank gets its part."""

    batch_size: int
    value_range: tuple[float, float]
    seed: int = 0
    flip: bool = False
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is outside a world of {self.world}")
        if self.batch_size < 1 or self.batch_size % self.world:
            raise ValueError(f"batch_size={self.batch_size} must be a positive multiple of world={self.world}")


@dataclass(frozen=True)
class Rows:
    """One step of one rank: the positions it stands at and the samples it reads there, int64 [B] each.

    placed: both on the device, where the loader has made them there.
    """

    at: Indices
    indices: Indices
    placed: tuple[Tensor, Tensor] | None = None


class ShardLoader(ABC):
    """Endless batches from any position, and one ordered pass for evaluation, over one split."""

    lossy = False

    def __init__(self, split: Split, spec: Spec) -> None:
        self.split, self.spec = split, spec
        self.transfer = Transfer(spec.device)
        self.arrays = {name: torch.from_numpy(np.array(a)).to(spec.device) for name, a in split.arrays.items()}

    @property
    def rows_per_step(self) -> int:
        """The most rows that this rank reads in one step."""
        return self.spec.batch_size // self.spec.world

    @abstractmethod
    def images(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, Tensor], None, None]:
        """uint8 [B, H, W, C] of each step of the plan, on the device, valid only until the next is asked for."""

    def close(self) -> None:  # noqa: B027 - most loaders hold nothing that outlives their iterators
        """Frees what an abandoned iterator would hold."""

    def __len__(self) -> int:
        return len(self.split)

    def plan(self, start: int = 0) -> Iterator[Rows]:
        """This rank's part of the endless stream from position `start` on."""
        order = Order(len(self), self.spec.seed)
        while True:
            at = positions(start, self.spec.batch_size, self.spec.rank, self.spec.world)
            yield Rows(at, order.indices(at))
            start += self.spec.batch_size

    def plan_once(self) -> Iterator[Rows]:
        """This rank's part of one pass over all samples, in near-equal global batches.

        Mixed, always in the same way: a set may lie sorted by class, and a batch of one class has another MMD.
        """
        mixed = Order(len(self)).permutation(0)
        steps = -(-len(self) // self.spec.batch_size)
        bounds = np.linspace(0, len(self), steps + 1).astype(np.int64)
        for begin, end in pairwise(bounds):
            at = positions(int(begin), int(end - begin), self.spec.rank, self.spec.world)
            yield Rows(at, mixed[at])

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """This rank's batches from position `start` on, without end: batch_size / world rows each."""
        with closing(self.images(self.plan(start))) as stream:
            for rows, images in stream:
                yield self._batch(rows, images, self.spec.seed, flip=self.spec.flip, draw=True)

    def once(self) -> Iterator[Batch]:
        """Every sample exactly once over all ranks, unflipped, with its first caption.

        Where N < world a batch may be empty.
        """
        with closing(self.images(self.plan_once())) as stream:
            for rows, images in stream:
                yield self._batch(rows, images, seed=0, flip=False, draw=False)

    def _batch(self, rows: Rows, images: Tensor, seed: int, flip: bool, draw: bool) -> Batch:
        """draw: one caption of each sample, else the first."""
        at, indices = rows.placed or (self.transfer(rows.at), self.transfer(rows.indices))
        noise = Noise(seed, at)
        side = {name: a.index_select(0, indices) for name, a in self.arrays.items() if name != "embeddings"}
        if (every := self.arrays.get("embeddings")) is not None:
            side["embeddings"] = _of_one_caption(every, indices, noise if draw else None)
        x = to_float(images, self.spec.value_range, flipped(noise) if flip else None)
        return Batch(x, noise, index=indices, **side)


def _of_one_caption(every: Tensor, indices: Tensor, noise: Noise | None) -> Tensor:
    """[N, E], or [N, K, E] for K captions a sample -> [B, E]: of a caption that the noise draws, or of the first."""
    if every.ndim == 2:
        return every.index_select(0, indices)
    return every[indices, 0 if noise is None else captions(noise, every.shape[1])]
