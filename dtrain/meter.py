"""Seconds: per step, and of them those spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Meter:
    """Times the steps since it was last read. What happens between steps is left out where it is said so."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins anew after so many steps."""
        self.step, self.waited, self._begin = step, 0.0, time.perf_counter()

    def read(self, step: int) -> tuple[float, float]:
        """(seconds, of them spent waiting) per step since the last time, up to `step`."""
        count = step - self.step
        found = (time.perf_counter() - self._begin) / count, self.waited / count
        self.restart(step)
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """An evaluation, or a save, is no part of a step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - begin

    def next(self, items: Iterator[T]) -> T:
        """The next item, waited for."""
        begin = time.perf_counter()
        item = next(items)
        self.waited += time.perf_counter() - begin
        return item
