"""Diagonal Gaussians: samples, costs and penalties."""

from __future__ import annotations

from torch import Tensor

from dtrain.noise import Noise


def draw(mean: Tensor, variance: Tensor, noise: Noise, site: str) -> Tensor:
    """One sample of N(mean, diag variance) per row."""
    return mean + variance.sqrt() * noise.normal(site, *mean.shape[1:])


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


def kl_to_standard_normal(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(mean, diag variance) || N(0, I)) = 1/2 sum_d (mean_d^2 + variance_d - log variance_d - 1).

    Mean over the batch; both [B, ...] -> scalar. (Kingma & Welling, 2014, Appendix B.)
    """
    return 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
