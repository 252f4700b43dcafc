"""Fully connected networks with batch normalisation (StackedWAE, B.1)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtrain.nets.recompute import Recomputable

VARIANCE_FLOOR = 1e-6  # keeps log and sqrt of a collapsed variance finite; not stated in the paper


def variance_of(raw: Tensor) -> Tensor:
    """softplus(clip(raw, -20, 500)) plus a small floor: how a network's raw output becomes a variance."""
    # hardtanh is a clip whose backward is one kernel, not five.
    return F.softplus(F.hardtanh(raw, -20, 500)) + VARIANCE_FLOOR


def full_precision(x: Tensor) -> Tensor:
    """Network outputs leave autocast here: losses and noise are float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def leaky(inputs: int, outputs: int, slope: float = 0.2) -> nn.Module:
    """[B, in] -> [B, out], linear with leaky ReLU; of nothing nothing: [B, 0] -> [B, 0]."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LeakyReLU(slope)) if inputs else nn.Identity()


class MLP(nn.Sequential):
    """[B, ...] -> float32 [B, out]: hidden layers of one width, each linear, batch norm, ReLU; then linear.

    normal_out: batch norm after the last one too.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 2, normal_out: bool = False) -> None:
        def block(n: int) -> list[nn.Module]:
            # No bias before batch norm: its gradient is rounding noise, which Adam would blow up to full steps.
            return [nn.Linear(n, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]

        layers = [m for i in range(depth) for m in block(hidden if i else inputs)]
        last = [nn.BatchNorm1d(outputs)] if normal_out else []
        super().__init__(nn.Flatten(), *layers, nn.Linear(hidden, outputs, bias=not normal_out), *last)

    def forward(self, input: Tensor) -> Tensor:
        return full_precision(super().forward(input))


class CodeCritic(nn.Module):
    """[B, d] -> float32 [B, 1]: hidden layers with leaky ReLU. A critic's logits, or a potential.

    hidden: the width of all `depth` layers, or of each.
    """

    def __init__(self, inputs: int, hidden: int | tuple[int, ...], depth: int = 4, slope: float = 0.2) -> None:
        super().__init__()
        sizes = [inputs, *((hidden,) * depth if isinstance(hidden, int) else hidden)]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.LeakyReLU(slope))]
        self.body = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        return full_precision(self.body(z))


class Potential(CodeCritic):
    """A number D and its gradient: forward(x [B, d]) -> float32 D(x) [B], grad D(x) [B, d].

    One forward gives both, so that a wrapper which averages gradients over ranks sees it as any other.
    scale: what the points of its plane were divided by.
    """

    scale: Tensor

    def __init__(self, inputs: int, hidden: int, depth: int, slope: float) -> None:
        super().__init__(inputs, hidden, depth, slope)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            value = full_precision(self.body(x)).squeeze(1)
            return value.sum(), value

        gradient, value = torch.func.grad(total, has_aux=True)(x)
        return value, gradient


class GaussianMLP(Recomputable):
    """A diagonal Gaussian given its input: forward([B, ...]) -> mean, variance, both float32 [B, *shape]."""

    def __init__(self, inputs: int, hidden: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = MLP(inputs, hidden, 2 * math.prod(shape))
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.through(self.body, x).chunk(2, dim=1)
        return mean.view(-1, *self.shape), variance_of(raw).view(-1, *self.shape)


class ImageMLP(Recomputable):
    """A deterministic image given a code: forward([B, d]) -> float32 [B, C, H, W].

    In [-1, 1] by a tanh where symmetric, otherwise in [0, 1] by a sigmoid.
    """

    def __init__(self, inputs: int, hidden: int, shape: tuple[int, ...], symmetric: bool) -> None:
        super().__init__()
        self.squash = torch.tanh if symmetric else torch.sigmoid
        self.body = MLP(inputs, hidden, math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        return self.squash(self.through(self.body, z)).view(-1, *self.shape)
