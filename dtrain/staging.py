"""Host memory for copies of what lies on a device, kept from one copy to the next."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


class HostBuffers:
    """Holds a copy of a state, of a DTensor its local part. pinned: page-locked, as a GPU's own copies need it.

    A copy is overwritten by the next one, and complete once the device has come to it.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned, self._held = pinned, dict[str, Tensor]()

    def copy(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same names with the values of now, on the host."""
        kept = {name: held for name, held in self._held.items() if name in state and _fits(held, state[name])}
        self._held = {name: kept[name] if name in kept else self._like(tensor) for name, tensor in state.items()}
        for name, tensor in state.items():
            _local(self._held[name]).copy_(_local(tensor).detach(), non_blocking=True)
        return self._held

    def _like(self, tensor: Tensor) -> Tensor:
        local = _local(tensor)
        buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=self.pinned)
        if local is tensor:
            return buffer
        whole = tensor.detach().to("cpu")  # a DTensor of the same mesh and placements
        whole._local_tensor = buffer  # type: ignore[attr-defined]
        return whole


def _local(tensor: Tensor) -> Tensor:
    return cast(Tensor, getattr(tensor, "_local_tensor", tensor))


def _fits(held: Tensor, tensor: Tensor) -> bool:
    return (held.dtype, held.shape, _local(held).shape) == (tensor.dtype, tensor.shape, _local(tensor).shape)
