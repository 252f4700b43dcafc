"""Who sees which sample when: one global order, a function of (seed, epoch), for every loader and world size.

A *position* counts the images seen by the whole job. Position p belongs to epoch p // N and reads sample
permutation(seed, epoch)[p % N]. A step takes the next `batch_size` positions; rank r of W takes every W-th
of them, starting at r. So the order does not know the world size, and a run resumes at any position.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def positions(start: int, batch_size: int, rank: int = 0, world: int = 1) -> Indices:
    """The positions of one step's batch that belong to `rank`: int64 [batch_size / world]."""
    return np.arange(start + rank, start + batch_size, world, dtype=np.int64)


class Order:
    """Maps positions to sample indices. shuffle=False reads the samples as they lie."""

    def __init__(self, count: int, seed: int = 0, shuffle: bool = True) -> None:
        if count < 1:
            raise ValueError(f"an order needs at least one sample, got count={count}")
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self._epoch: int | None = None
        self._permutation: Indices = np.arange(count)

    def permutation(self, epoch: int) -> Indices:
        """Sample indices of one epoch: int64 [N]. The last one used is kept."""
        if self.shuffle and epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        return self._permutation

    def indices(self, at: Indices) -> Indices:
        """Sample index at each (ascending) position."""
        if not len(at):
            return at
        first, last = int(at[0]) // self.count, int(at[-1]) // self.count
        if first == last:
            return self.permutation(first).take(at - first * self.count)
        bounds = np.searchsorted(at, np.arange(first + 1, last + 1) * self.count)
        parts = np.split(at, bounds)
        return np.concatenate(
            [self.permutation(e).take(p - e * self.count) for e, p in enumerate(parts, start=first)]
        )
