"""Activation checkpointing that leaves batch norm's running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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
    """The second forward of a batch must not move the running statistics again."""
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
