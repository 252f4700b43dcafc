"""Residual encoder and decoder, code generator and critic of codes of the AAE with a learned prior (Tables A1 to A3).

For images of 32 x 32 and 64 x 64. The residual blocks have no batch norm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from dtrain.nets.mlp import MLP, CodeCritic, full_precision, leaky

CORE = 4  # side of the smallest feature maps


class Residual(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H', W']: two convolutions and a shortcut, ReLU after each and after the sum.

    stride 2 halves the side; up doubles it instead, the shortcut by its nearest pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, up: bool = False) -> None:
        super().__init__()
        first = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1) if up else nn.Conv2d(inputs, outputs, 3, stride, 1)
        second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        for convolution in (first, second):
            nn.init.kaiming_normal_(convolution.weight)  # no batch norm keeps the scale; not stated in the paper
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        plain = stride == 1 and inputs == outputs
        # With AVX2 alone oneDNN's strided 1 x 1 writes past its memory below 8 channels: sliced first.
        self.every = stride if inputs < 8 else 1
        self.shortcut: nn.Module = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride // self.every)
        if up:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor) -> Tensor:
        thinned = x if self.every == 1 else x[..., :: self.every, :: self.every]
        return torch.relu(self.body(x) + self.shortcut(thinned))


class ResidualEncoder(nn.Module):
    """[B, C, S, S] -> float32 [B, outputs]. hidden: units of the layer before the last."""

    def __init__(self, image_shape: tuple[int, int, int], hidden: int, outputs: int, width: int) -> None:
        super().__init__()
        channels, side, _ = image_shape
        self.body = nn.Sequential(
            # The printed stride of 2 fits 64 x 64; 32 x 32 would be 2 x 2 before the pooling of 4 x 4.
            nn.Conv2d(channels, width, 3, side // 32, 1), nn.ReLU(),
            Residual(width, width), Residual(width, 2 * width, stride=2),
            Residual(2 * width, 4 * width, stride=2), Residual(4 * width, 8 * width, stride=2),
            nn.AvgPool2d(CORE), MLP(8 * width, hidden, outputs, depth=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.body(x))


class ResidualDecoder(nn.Module):
    """[B, code] -> float32 [B, C, S, S] in [-1, 1]."""

    def __init__(self, image_shape: tuple[int, int, int], code: int, width: int) -> None:
        super().__init__()
        channels, side, _ = image_shape
        filters = [8 * width, 4 * width, 2 * width, *[width] * (side // 32)]
        ups = [Residual(above, below, up=True) for above, below in pairwise(filters)]
        self.body = nn.Sequential(
            nn.Unflatten(1, (code, 1, 1)), nn.ConvTranspose2d(code, 8 * width, CORE, bias=False),
            nn.BatchNorm2d(8 * width), nn.ReLU(), *ups, nn.Conv2d(width, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return full_precision(self.body(z)).tanh()


class CodeGenerator(nn.Module):
    """CG: noise and a condition to a code, forward(z [B, n], s [B, E]) -> float32 [B, code].

    sentence: units of a layer that s goes through first, 0 for none.
    """

    def __init__(self, noise: int, condition: int, code: int, sentence: int = 0) -> None:
        super().__init__()
        self.sentence = leaky(condition if sentence else 0, sentence)
        inputs = noise + (sentence or condition)
        self.body = MLP(inputs, 2 * inputs, code, depth=1, normal_out=True)

    def forward(self, z: Tensor, s: Tensor) -> Tensor:
        return self.body(torch.cat([z, self.sentence(s)], 1))


class GivenCode(nn.Module):
    """The code that no network has made: forward(z [B, n], s [B, E]) -> [s; z], [B, E + n]."""

    def forward(self, z: Tensor, s: Tensor) -> Tensor:
        return torch.cat([s, z], 1)


class ConditionalCritic(CodeCritic):
    """D_C: codes and what they are said to stand for, forward(z [B, d], s [B, E]) -> float32 logits [B, 1].

    condition: E, or 0 where it judges codes alone, whatever s is.
    """

    HIDDEN = (1000, 500, 200)  # Table A3

    def __init__(self, code: int, condition: int) -> None:
        super().__init__(code + condition, self.HIDDEN)
        self.condition = condition

    def forward(self, z: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([z, s[:, : self.condition]], 1))
