"""StackedWAE: a deep latent hierarchy trained by stacking Wasserstein autoencoders (paper 001)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw, expected_squared_cost, log_variance_penalty, squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Scale, Terms, Update, Weight
from dtrain.nets.mlp import GaussianMLP, ImageMLP
from dtrain.nets.resnet import GaussianResNet, ImageResNet, double, halve, same
from dtrain.noise import Noise

Schedule = Literal["mnist", "svhn", "celeba"]
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


def level_weights(schedule: Schedule, lambda_rec: float, dims: list[int]) -> list[float]:
    """w_1 .. w_{N-1}, the weights of E[c(z_i, z_hat_i)] in Eq. 14, as the authors ran each data set.

    mnist: lambda^i / d_i. svhn: lambda^i. celeba: lambda^((i-1)/3 + 1). dims: d_1 .. d_N.
    """
    levels = range(1, len(dims))
    if schedule == "mnist":
        return [lambda_rec**i / dims[i - 1] for i in levels]
    if schedule == "svhn":
        return [lambda_rec**i for i in levels]
    return [lambda_rec ** ((i - 1) / 3 + 1) for i in levels]


def variance_weights(lambda_sigma: float, decay: float, levels: int) -> list[float]:
    """lambda_sigma * exp(-decay * i), i = 0 .. N-1: weights of the log-variance penalty (Eq. 17).

    As the authors' code, which scales the deepest by another 1 to 2.
    """
    return [lambda_sigma * math.exp(-decay * i) for i in range(levels)]


class StackedWAE(Algorithm):
    """Encoders q(z_i | z_{i-1}) and decoders p(z_{i-1} | z_i), z_0 = x, one parameter group per level.

    encoders[i], decoders[i] connect level i (0 is the image) and level i + 1. All are diagonal Gaussians except the
    bottom decoder, which is deterministic. width multiplies the units or filters of every level. symmetric: pixels in
    [-1, 1] and a tanh, otherwise in [0, 1] and a sigmoid.
    """

    batch_coupled = True  # the MMD of a batch is not a mean over its samples

    def __init__(
        self,
        data: DataFacts,
        *,
        levels: Levels,
        width: Dimension = 1,
        symmetric: bool = False,
        lambda_rec: Weight,
        lambda_match: Weight,
        schedule: Schedule,
        prior_scale: Scale = 1.0,
        lambda_sigma: Weight = 0.0,
        lambda_sigma_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.value_range = (-1.0 if symmetric else 0.0, 1.0)
        self.shapes = latent_shapes(data.image_shape, levels)
        self.levels = len(levels)
        self.encoders = nn.ModuleList(
            [r.encoder(below, width) for r, below in zip(levels, self.shapes, strict=False)]
        )
        upper = [r.decoder(below, width) for r, below in zip(levels[1:], self.shapes[1:], strict=False)]
        self.decoders = nn.ModuleList([levels[0].image_decoder(data.image_shape, width, symmetric), *upper])
        self.groups = {f"level{i + 1}": (f"encoders.{i}", f"decoders.{i}") for i in range(self.levels)}
        self.lambda_match, self.prior_scale = lambda_match, prior_scale
        self.weights = level_weights(schedule, lambda_rec, [math.prod(s) for s in self.shapes[1:]])
        self.penalised = lambda_sigma > 0
        self.variance_weights = variance_weights(lambda_sigma, lambda_sigma_decay, self.levels)

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update(tuple(self.groups), self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """Eq. 14 (and Eq. 17): every level is decoded from one sample of the next, one level only.

        The targets z_i are not detached: gradients reach both sides of each cost.
        """
        terms: Terms = {}
        below = batch.x
        for i in range(self.levels):
            mean, variance = self.encoders[i](below)
            z = draw(mean, variance, batch.noise, f"z{i + 1}")
            if i == 0:
                terms["x"] = squared_cost(batch.x, self.decoders[0](z))
            else:
                terms[f"z{i}"] = self.weights[i - 1] * expected_squared_cost(below, *self.decoders[i](z))
            if self.penalised:
                terms[f"var{i + 1}"] = self.variance_weights[i] * log_variance_penalty(variance)
            below = z
        mmd = imq_mmd(self.gather(below), self.gather(self.draw_deepest(batch.noise)), self.prior_scale)
        terms["mmd"] = self.lambda_match * mmd
        return terms

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        *_, (z, _) = islice(self.posteriors(x), level)
        return z

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each level's, given the mean of the one before."""
        for encoder in self.encoders:
            x, variance = encoder(x)
            yield x, variance

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        for decoder in reversed(self.decoders[1:level]):
            z, _ = decoder(z)
        return self.decoders[0](z)

    def draw_deepest(self, noise: Noise) -> Tensor:
        """z_N from its prior N(0, prior_scale^2 I)."""
        return self.prior_scale * noise.normal("prior", *self.shapes[-1])

    def chain(self, deepest: Noise, noise: Noise) -> Tensor:
        """z_1 of the generative model: z_N from the prior, then z_{i-1} ~ p(z_{i-1} | z_i) down the chain (Eq. 1)."""
        z = self.draw_deepest(deepest)
        for i in range(self.levels - 1, 0, -1):
            mean, variance = self.decoders[i](z)
            z = draw(mean, variance, noise, f"decode{i}")
        return z

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"chain": lambda noise: self.chain(noise, noise)}

    def grid(self, side: int) -> Tensor | None:
        """From -2 to 2 standard deviations of the prior: to the right the first coordinate, upwards the second."""
        if self.shapes[-1] != (2,):
            return None
        line = self.prior_scale * torch.linspace(-2, 2, side)
        return torch.stack(torch.meshgrid(-line, line, indexing="ij")[::-1], dim=-1).reshape(-1, 2)

    def summary(self) -> str:
        shapes = [" x ".join(map(str, s)) for s in self.shapes]
        return ", ".join(f"z_{i} {shape}" if i else f"x {shape}" for i, shape in enumerate(shapes))


class HierarchicalWAE(StackedWAE):
    """The ablation: one WAE whose prior on z_1 is the chain of decoders above it (Eq. 8).

    Nothing in the objective depends on the encoders above the first: they keep their first weights, in no group.
    """

    def __init__(
        self,
        data: DataFacts,
        *,
        levels: Levels,
        width: Dimension = 1,
        symmetric: bool = False,
        lambda_match: Weight,
        prior_scale: Scale = 1.0,
    ) -> None:
        super().__init__(
            data, levels=levels, width=width, symmetric=symmetric, lambda_rec=0.0, lambda_match=lambda_match,
            schedule="svhn", prior_scale=prior_scale,
        )  # fmt: skip
        upper = {f"level{i + 1}": (f"decoders.{i}",) for i in range(1, self.levels)}
        self.groups = {"level1": self.groups["level1"], **upper}

    def objective(self, batch: Batch) -> Terms:
        """Eq. 8: c(x, x_hat) through z_1, and the MMD between its codes and the z_1 of the generative model."""
        mean, variance = self.encoders[0](batch.x)
        z = draw(mean, variance, batch.noise, "z1")
        learned = self.chain(batch.noise, batch.noise)
        # The kernel's scales are by d_1, which the paper does not state; the authors' code has d_N.
        mmd = imq_mmd(self.gather(z), self.gather(learned), self.prior_scale)
        return {"x": squared_cost(batch.x, self.decoders[0](z)), "mmd": self.lambda_match * mmd}
