"""Adversarial losses on logits: a critic D = sigmoid(logits), and the network that it judges."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-[log D(real) + log(1 - D(fake))], each a mean over all logits (of a batch, of its patches) -> scalar."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """-log D(fake), the non-saturating loss of what made it; mean over all logits -> scalar."""
    return F.softplus(-fake).mean()
