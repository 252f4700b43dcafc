"""Adversarial losses on logits: a critic D = sigmoid(logits), and the network that it judges."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-[log D(real) + log(1 - D(fake))], each a mean over all logits (of a batch, of its patches) -> scalar."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """-log D(fake), the non-saturating loss of what made it; mean over all logits -> scalar."""
    return F.softplus(-fake).mean()


def gradient_ratio(error: Tensor, adversary: Tensor, at: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """|d error / d at| / |d adversary / d at|, two losses of the batch: at [B, ...] -> scalar.

    The norms are over the rows of all processes, which `gather` brings together.
    """
    squares = [torch.autograd.grad(loss, at)[0].square().sum() for loss in (error, adversary)]
    of_error, of_adversary = gather(torch.stack(squares)[None]).sum(0).sqrt()
    return of_error / of_adversary
