"""Residual networks with batch normalisation for one level of a hierarchy (StackedWAE, B.2, Figures 9 and 10).

Two blocks [conv, batch norm, activation], a resampling convolution, a shortcut from the input added to it, batch norm
and activation, and a last convolution to the outputs. Encoders halve the side and double the filters where they
resample, decoders double the side and halve the filters; after the blocks, as the paper has it, where the authors'
code has it before them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dtrain.nets.mlp import full_precision, variance_of
from dtrain.nets.recompute import Recomputable

Convolution = Callable[[int, int, int], nn.Module]


def same(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution that keeps the side. No bias: batch norm follows, or a sum with one that has it."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def halve(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)


def double(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, output_padding=1, bias=False)


class ResNet(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H', W']. kernel is odd. resample is `same`, `halve` or `double`."""

    def __init__(
        self, inputs: int, filters: int, outputs: int, kernel: int, resample: Convolution, activation: nn.Module
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a residual level needs an odd kernel, got {kernel}")
        wide = 2 * filters if resample is halve else filters // 2 if resample is double else filters
        self.body = nn.Sequential(
            same(inputs, filters, kernel), nn.BatchNorm2d(filters), activation,
            same(filters, filters, kernel), nn.BatchNorm2d(filters), activation,
            resample(filters, wide, kernel),
        )  # fmt: skip
        plain = resample is same and inputs == wide
        self.shortcut = nn.Identity() if plain else resample(inputs, wide, kernel)
        self.head = nn.Sequential(
            nn.BatchNorm2d(wide), activation, nn.Conv2d(wide, outputs, kernel, padding=kernel // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + self.shortcut(x))


class GaussianResNet(Recomputable):
    """A diagonal Gaussian over feature maps: forward(x) -> mean, variance, both float32 [B, features, H', W']."""

    def __init__(
        self, inputs: int, filters: int, features: int, kernel: int, resample: Convolution, activation: nn.Module
    ) -> None:
        super().__init__()
        self.body = ResNet(inputs, filters, 2 * features, kernel, resample, activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = full_precision(self.through(self.body, x)).chunk(2, dim=1)
        return mean, variance_of(raw)


class ImageResNet(Recomputable):
    """A deterministic image given feature maps: forward(z) -> float32 [B, channels, H', W'].

    In [-1, 1] by a tanh where symmetric, otherwise in [0, 1] by a sigmoid.
    """

    def __init__(
        self, inputs: int, filters: int, channels: int, kernel: int, resample: Convolution, symmetric: bool
    ) -> None:
        super().__init__()
        self.squash = torch.tanh if symmetric else torch.sigmoid
        self.body = ResNet(inputs, filters, channels, kernel, resample, nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:
        return self.squash(full_precision(self.through(self.body, z)))
