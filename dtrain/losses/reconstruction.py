"""Errors of reconstructions, what they are relative to, and how much of their gradient reaches whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dtrain.losses.gaussian import squared_cost

Reduction = Literal["mean", "sum"]


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, whose gradient arrives multiplied by scale."""
    return x.detach() + scale * (x - x.detach())  # the difference is 0, exactly


def squared_error(x: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """|x - y|^2, the mean or the sum over elements, mean over the batch: x, y [B, ...] -> scalar."""
    return squared_cost(x, y) if reduction == "sum" else (x - y).square().mean()


def cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) of independent Bernoulli pixels, summed over them, mean over the batch: both [B, ...] -> scalar.

    x in [-1, 1] stands for (x + 1) / 2, which need not be 0 or 1; so does the mean image tanh(logits).
    """
    of_pixels = F.binary_cross_entropy_with_logits(2 * logits, (x + 1) / 2, reduction="none")
    return of_pixels.flatten(1).sum(1).mean()


def relative_error(x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    """sum_d (x_d - y_d)^2 / variance, mean over the batch: x, y [B, d], variance [B] -> scalar.

    With the mean variance of x, it is d where y is no better than the mean of x.
    """
    return ((x - y).square().sum(1) / variance).mean()


def variance_of_batch(x: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Var(x_d) over the rows of all processes, which `gather` brings together, without gradient: [B, d] -> [d]."""
    with torch.enable_grad():  # then gather takes it that all have as many rows, and asks nobody
        rows = gather(x.detach())
    return rows.var(0, correction=0)
