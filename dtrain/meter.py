"""What a step costs: seconds, of them those spent waiting for data, and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def memory_mb(device: torch.device) -> float:
    """The most that this process has held: of the GPU's memory, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Meter:
    """Times the steps since it was last read. What happens between steps is left out where it is said so."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins anew after so many steps."""
        self.step, self.waited, self._begin = step, 0.0, time.perf_counter()

    def read(self, step: int, images: int) -> dict[str, float]:
        """images_per_s, step_s and data_wait_s (seconds) since the last time, up to `step`, and memory_mb.

        images: of one step.
        """
        count = step - self.step
        seconds, waited = (time.perf_counter() - self._begin) / count, self.waited / count
        self.restart(step)
        memory = memory_mb(self.device)
        return {"images_per_s": images / seconds, "step_s": seconds, "data_wait_s": waited, "memory_mb": memory}

    def skip(self, seconds: float) -> None:
        """Leaves out time that was no part of a step, or of another's."""
        self._begin += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """An evaluation, or a save, is no part of a step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.skip(time.perf_counter() - begin)

    def next(self, items: Iterator[T]) -> T:
        """The next item, waited for."""
        begin = time.perf_counter()
        item = next(items)
        self.waited += time.perf_counter() - begin
        return item
