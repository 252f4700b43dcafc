"""Host arrays to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


class Transfer:
    """Copies arrays to a GPU from page-locked buffers, on a stream of their own, while the steps before compute.

    Pageable memory would stop the host until all steps under way are done, and a buffer that is written again too
    early would arrive as the next batch: every slot of the ring waits for the event of its last copy. For a CPU it is
    no copy. One thread at a time.
    """

    SLOTS = 8

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._slots: list[tuple[Tensor, torch.cuda.Event] | None] = [None] * self.SLOTS
        self._next = 0
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, array: npt.NDArray[Any]) -> Tensor:
        """The array on the device; on a CPU it shares the array's memory."""
        source = torch.from_numpy(array)
        if self.device.type != "cuda":
            return source.to(self.device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        buffer, copied = self._slot(array.nbytes)
        place = buffer[: array.nbytes].view(source.dtype).view(source.shape)
        place.copy_(source)
        with torch.cuda.stream(self._stream):
            out = place.to(self.device, non_blocking=True)
            copied.record(self._stream)
        using = torch.cuda.current_stream(self.device)
        using.wait_stream(self._stream)
        out.record_stream(using)  # its memory is not given away while a step reads it
        return out

    def _slot(self, size: int) -> tuple[Tensor, torch.cuda.Event]:
        """A buffer of at least so many bytes whose last copy is over, and the event of its next one."""
        number, self._next = self._next, (self._next + 1) % self.SLOTS
        slot = self._slots[number]
        if slot is not None:
            slot[1].synchronize()
        if slot is None or len(slot[0]) < size:
            slot = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True), torch.cuda.Event()
            self._slots[number] = slot
        return slot
