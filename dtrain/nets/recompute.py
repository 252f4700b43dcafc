"""Activation checkpointing that leaves batch norm's running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dtrain.nets.batchnorm import batch_norms


class Recomputable(nn.Module):
    """A network that can trade compute for memory: `trainer.activation_checkpointing` sets its flag."""

    recompute_activations = False

    def through(self, part: nn.Module, x: Tensor) -> Any:
        """part(x), keeping only x for the backward pass where the flag is set."""
        if not (self.recompute_activations and self.training):
            return part(x)
        return checkpoint(part, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(part)))


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """The second forward of a batch must do as the first did, but move copies of the running statistics."""
    kept = [(norm, norm._buffers) for norm in batch_norms(part)]
    for norm, buffers in kept:
        norm._buffers = {k: None if b is None else b.clone() for k, b in buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers = buffers
