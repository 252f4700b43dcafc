"""Errors of reconstructions, and how much of their gradient reaches whom."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dtrain.losses.gaussian import squared_cost

Reduction = Literal["mean", "sum"]


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, whose gradient arrives multiplied by scale."""
    return x.detach() + scale * (x - x.detach())  # the difference is 0, exactly


def squared_error(x: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """|x - y|^2, the mean or the sum over elements, mean over the batch: x, y [B, ...] -> scalar."""
    return squared_cost(x, y) if reduction == "sum" else (x - y).square().mean()


def relative_error(x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    """sum_d (x_d - y_d)^2 / variance, mean over the batch: x, y [B, d], variance [B] -> scalar.

    With the mean variance of x, it is d where y is no better than the mean of x.
    """
    return ((x - y).square().sum(1) / variance).mean()
