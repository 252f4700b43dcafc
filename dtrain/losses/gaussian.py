"""Diagonal Gaussians: samples, costs and penalties."""

from __future__ import annotations

import math

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


def log_density(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(z; mean, diag variance), summed over the last dimension: broadcast [..., d] -> [...]."""
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (z - mean).square() / variance).sum(-1)


def mixture_log_density(z: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """log 1/K sum_k N(z; means_k, diag variances_k): z [B, d], the others [K, d] -> [B]. (VampPrior, Eq. 9.)"""
    return log_density(z[:, None], means, variances).logsumexp(1) - math.log(len(means))
