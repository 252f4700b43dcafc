"""What a stage's steps read: this rank's rows, counted and timed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from dtrain.meter import Meter
from dtrain.models.base import Site, Source, Stage


def rows(item: Any, rank: int, world: int) -> Any:
    """A rank's rows of a global batch: a tensor, a Batch, or a tuple of such."""
    if isinstance(item, tuple):
        return tuple(rows(part, rank, world) for part in item)
    return item[rank::world]


class Stream:
    """The batches of a stage from a position on.

    images: rows handed out to the whole job in this stage. The first batch is fetched at once: what a source does but
    once, such as compiling, is not a wait of the first step.
    """

    def __init__(self, stage: Stage, site: Site, images: int, meter: Meter) -> None:
        self.images, self._stage, self._size, self._meter = images, stage, site.batch_size, meter
        self._source: Source | None = None
        if stage.source is None:
            batches = site.train.batches(images)
        else:
            self._source = stage.source(site)
            batches = (rows(b, site.world.rank, site.world.size) for b in self._source.batches(images))
        self._batches = chain([next(batches)], batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = self._meter.next(self._batches)
        self.images += self._size
        return batch

    def taken(self, before: int) -> None:
        """RuntimeError unless the step since `before` images took as many batches as its stage says."""
        found, said = (self.images - before) // self._size, self._stage.batches_per_step
        if found != said:
            raise RuntimeError(
                f"a step of stage {self._stage.name!r} took {found} batches, its batches_per_step says {said}"
            )

    def close(self) -> None:
        """Frees what the source holds; the loader stays as it is."""
        if self._source is not None:
            self._source.close()
