"""Fully connected networks with batch normalisation (StackedWAE, B.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtrain.nets.recompute import Recomputable

VARIANCE_FLOOR = 1e-6  # keeps log and sqrt of a collapsed variance finite; not stated in the paper


def variance_of(raw: Tensor) -> Tensor:
    """softplus(clip(raw, -20, 500)) plus a small floor: how a network's raw output becomes a variance."""
    return F.softplus(raw.clamp(-20, 500)) + VARIANCE_FLOOR


def full_precision(x: Tensor) -> Tensor:
    """Network outputs leave autocast here: losses and noise are float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MLP(nn.Sequential):
    """[B, ...] -> [B, out]: hidden layers of one width, each linear, batch norm, ReLU; then linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 2) -> None:
        def block(n: int) -> list[nn.Module]:
            # No bias before batch norm: its gradient is rounding noise, which Adam would blow up to full steps.
            return [nn.Linear(n, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]

        layers = [m for i in range(depth) for m in block(hidden if i else inputs)]
        super().__init__(nn.Flatten(), *layers, nn.Linear(hidden, outputs))


class GaussianMLP(Recomputable):
    """A diagonal Gaussian given its input: forward([B, ...]) -> mean, variance, both float32 [B, outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.body = MLP(inputs, hidden, 2 * outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = full_precision(self.through(self.body, x)).chunk(2, dim=1)
        return mean, variance_of(raw)


class ImageMLP(Recomputable):
    """A deterministic image given a code: forward([B, d]) -> float32 [B, C, H, W] in [0, 1]."""

    def __init__(self, inputs: int, hidden: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.body = MLP(inputs, hidden, math.prod(image_shape))
        self.image_shape = image_shape

    def forward(self, z: Tensor) -> Tensor:
        return full_precision(self.through(self.body, z)).sigmoid().view(-1, *self.image_shape)
