"""dtrain: distributed training of generative autoencoders and optimal transport models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.trained import load as load


def __getattr__(name: str) -> Any:
    """dtrain.load, which loads torch, only where it is asked for."""
    if name == "load":
        from dtrain.trained import load

        return load
    raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
