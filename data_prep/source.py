"""One split of a data set before it is written: where each sample comes from and what travels with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class SourceError(Exception):
    """An original file is missing, incomplete or damaged; the message names it and says what to do."""


class BrokenImageError(Exception):
    """One sample cannot be read; the message says why, and the writer adds which."""


@dataclass(frozen=True)
class Source:
    """names: one per sample, as the user finds it in the original files. read: sample number → uint8 [H, W, C] of
    `shape`; it runs in worker processes and raises BrokenImageError.

    arrays: labels, attributes, …, N rows each. about: goes into the manifest as it is. broken: samples known to be
    unusable before they are read, with the reason.
    """

    names: Sequence[str]
    read: Callable[[int], Pixels]
    shape: tuple[int, int, int]
    arrays: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, Any]
    captions: Sequence[Sequence[str]] | None = None
    broken: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def part(self, rows: npt.NDArray[np.int64]) -> Source:
        """The samples of these rows, in their order."""
        place = {int(row): i for i, row in enumerate(rows)}
        return replace(
            self,
            names=[self.names[row] for row in rows],
            read=partial(_read_row, self.read, rows),
            arrays={name: a[rows] for name, a in self.arrays.items()},
            captions=None if self.captions is None else [self.captions[row] for row in rows],
            broken={place[row]: why for row, why in self.broken.items() if row in place},
        )


def _read_row(read: Callable[[int], Pixels], rows: npt.NDArray[np.int64], sample: int) -> Pixels:
    return read(int(rows[sample]))
