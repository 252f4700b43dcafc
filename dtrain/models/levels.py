"""The levels of a latent hierarchy: what each is made of, and the shape of its code (paper 001, B.1 and B.2)."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from torch import nn

from dtrain.models.base import Dimension
from dtrain.nets.mlp import GaussianMLP, ImageMLP
from dtrain.nets.resnet import GaussianResNet, ImageResNet, double, halve, same

Shape = tuple[int, ...]


class Dense(BaseModel):
    """A level of fully connected networks: units of their two hidden layers, dimensions of its code (B.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden: Dimension
    latent: Dimension

    def shape(self, below: Shape) -> Shape:
        """Of the level's code, on codes (or images) of the shape `below`."""
        return (self.latent,)

    def encoder(self, below: Shape, width: int) -> nn.Module:
        """q(z | below)."""
        return GaussianMLP(math.prod(below), width * self.hidden, (self.latent,))

    def decoder(self, below: Shape, width: int) -> nn.Module:
        """p(below | z)."""
        return GaussianMLP(self.latent, width * self.hidden, below)

    def image_decoder(self, image: Shape, width: int, symmetric: bool) -> nn.Module:
        """The image, given z of the first level."""
        return ImageMLP(self.latent, width * self.hidden, image, symmetric)


class Convolutional(BaseModel):
    """A level of residual networks, a row of Figure 10. latent: features, side, side; resample: the side halves."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kernel: Dimension
    filters: Dimension
    resample: bool
    latent: tuple[Dimension, Dimension, Dimension]

    def shape(self, below: Shape) -> Shape:
        """Of the level's code. ValueError where its side is not what the resampling gives."""
        if len(below) != 3:
            raise ValueError(
                f"a convolutional level cannot stand on the {math.prod(below)} dimensions of a dense one"
            )
        side = below[1:]
        if self.resample and (side[0] % 2 or side[1] % 2):
            raise ValueError(f"a side of {side[0]} x {side[1]} cannot be halved")
        side = (side[0] // 2, side[1] // 2) if self.resample else side
        if self.latent[1:] != side:
            raise ValueError(f"latent={list(self.latent)}: the side at this level is {side[0]} x {side[1]}")
        return self.latent

    def encoder(self, below: Shape, width: int) -> nn.Module:
        """q(z | below)."""
        down = halve if self.resample else same
        filters = width * self.filters
        # Leaky ReLU in encoders as the authors' code; the paper (B.2) has ReLU everywhere.
        return GaussianResNet(below[0], filters, self.latent[0], self.kernel, down, nn.LeakyReLU(0.2))

    def decoder(self, below: Shape, width: int) -> nn.Module:
        """p(below | z)."""
        up = double if self.resample else same
        return GaussianResNet(self.latent[0], width * self.filters, below[0], self.kernel, up, nn.ReLU())

    def image_decoder(self, image: Shape, width: int, symmetric: bool) -> nn.Module:
        """The image, given z of the first level."""
        up = double if self.resample else same
        return ImageResNet(self.latent[0], width * self.filters, image[0], self.kernel, up, symmetric)


def _kind(row: Any) -> str:
    keys = row if isinstance(row, dict) else getattr(row, "__dict__", {})
    return "convolutional" if "kernel" in keys or "filters" in keys else "dense"


Level = Annotated[
    Annotated[Dense, Tag("dense")] | Annotated[Convolutional, Tag("convolutional")], Discriminator(_kind)
]
Levels = Annotated[list[Level], Field(min_length=1)]


def latent_shapes(image: Shape, levels: list[Level]) -> list[Shape]:
    """The shapes of x and z_1 .. z_N. ValueError naming the level that does not fit the one below."""
    shapes = [image]
    for i, level in enumerate(levels):
        try:
            shapes.append(level.shape(shapes[-1]))
        except ValueError as e:
            raise ValueError(f"model.levels.{i}: {e}") from e
    return shapes
