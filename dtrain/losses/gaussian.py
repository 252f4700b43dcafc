"""Costs and penalties of diagonal Gaussians."""

from __future__ import annotations

from torch import Tensor


def squared_cost(x: Tensor, y: Tensor) -> Tensor:
    """c(x, y) = sum_d (x_d - y_d)^2, mean over the batch. x, y [B, ...] -> scalar."""
    return (x - y).square().flatten(1).sum(1).mean()


def expected_squared_cost(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """E[c(z, w)] for w ~ N(mean, diag variance), in closed form: sum_d variance_d + (mean_d - z_d)^2.

    Mean over the batch; all [B, ...] -> scalar. (StackedWAE, Eq. 14: "computed analytically whenever possible".)
    """
    return (variance + (mean - z).square()).flatten(1).sum(1).mean()


def log_variance_penalty(variance: Tensor) -> Tensor:
    """R = mean over the batch of sum_d |log variance_d|. variance [B, ...] -> scalar. (StackedWAE, Eq. 17.)"""
    return variance.log().abs().flatten(1).sum(1).mean()
