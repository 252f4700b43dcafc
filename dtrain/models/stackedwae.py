"""StackedWAE: a deep latent hierarchy trained by stacking Wasserstein autoencoders (paper 001)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import expected_squared_cost, log_variance_penalty, squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, Terms, Update
from dtrain.nets.mlp import GaussianMLP, ImageMLP
from dtrain.nets.resnet import GaussianResNet, ImageResNet, double, halve, same
from dtrain.noise import Noise

Dimension = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Schedule = Literal["mnist", "svhn", "celeba"]


class Level(TypedDict):
    """One row of the paper's Figure 10. latent: (features, side, side); resample: whether the side halves."""

    kernel: Dimension
    filters: Dimension
    resample: bool
    latent: tuple[Dimension, Dimension, Dimension]


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
    """lambda_sigma * exp(-decay * i), i = 0 .. N-1: weights of the log-variance penalty (Eq. 17)."""
    return [lambda_sigma * math.exp(-decay * i) for i in range(levels)]


def draw(mean: Tensor, variance: Tensor, noise: Noise, site: str) -> Tensor:
    """One sample of N(mean, diag variance) per row."""
    return mean + variance.sqrt() * noise.normal(site, *mean.shape[1:]).to(mean.dtype)


class StackedWAE(Algorithm):
    """Encoders q(z_i | z_{i-1}) and decoders p(z_{i-1} | z_i), z_0 = x, one parameter group per level.

    encoders[i], decoders[i] connect level i (0 is the image) and level i + 1. All are diagonal Gaussians except the
    bottom decoder, which is deterministic.
    """

    batch_coupled = True  # the MMD of a batch is not a mean over its samples

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        latent_dims: Annotated[list[Dimension], Field(min_length=1)],
        hidden: Annotated[list[Dimension], Field(min_length=1)],
        lambda_rec: Weight,
        lambda_match: Weight,
        weights: Schedule,
        prior_scale: Annotated[float, Field(gt=0)] = 1.0,
        lambda_sigma: Weight = 0.0,
        lambda_sigma_decay: float = 0.0,
    ) -> None:
        super().__init__()
        if len(hidden) != len(latent_dims):
            raise ValueError(f"model.hidden has {len(hidden)} levels, model.latent_dims has {len(latent_dims)}")
        below = [math.prod(image_shape), *latent_dims]
        encoders = [GaussianMLP(below[i], h, below[i + 1]) for i, h in enumerate(hidden)]
        decoders = [GaussianMLP(below[i + 1], h, below[i]) for i, h in enumerate(hidden) if i]
        bottom = ImageMLP(below[1], hidden[0], image_shape)
        self._stack(encoders, [bottom, *decoders], image_shape, [(d,) for d in latent_dims])
        self._weigh(lambda_rec, lambda_match, weights, prior_scale, lambda_sigma, lambda_sigma_decay)

    def _stack(
        self,
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        image_shape: tuple[int, int, int],
        shapes: list[tuple[int, ...]],
    ) -> None:
        """The networks of every level, bottom up, and the shapes of x and z_1 .. z_N."""
        self.image_shape = image_shape
        self.encoders, self.decoders, self.latent_shapes = nn.ModuleList(encoders), nn.ModuleList(decoders), shapes
        self.levels = len(shapes)
        self.groups = {f"level{i + 1}": (f"encoders.{i}", f"decoders.{i}") for i in range(self.levels)}

    def _weigh(
        self,
        lambda_rec: float,
        lambda_match: float,
        weights: Schedule,
        prior_scale: float,
        lambda_sigma: float,
        lambda_sigma_decay: float,
    ) -> None:
        """The weights of the objective's terms."""
        self.lambda_match, self.prior_scale = lambda_match, prior_scale
        self.weights = level_weights(weights, lambda_rec, [math.prod(s) for s in self.latent_shapes])
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
            if self.variance_weights[i]:
                terms[f"var{i + 1}"] = self.variance_weights[i] * log_variance_penalty(variance)
            below = z
        prior = self.prior_scale * batch.noise.normal("prior", *below.shape[1:]).to(below.dtype)
        mmd = imq_mmd(self.gather(below), self.gather(prior), self.prior_scale)
        terms["mmd"] = self.lambda_match * mmd
        return terms

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        *_, z = islice(self.encode_levels(x), level)
        return z

    def encode_levels(self, x: Tensor) -> Iterator[Tensor]:
        for encoder in self.encoders:
            x, _ = encoder(x)
            yield x

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        for decoder in reversed(self.decoders[1:level]):
            z, _ = decoder(z)
        return self.decoders[0](z)

    def generators(self) -> dict[str, Callable[[Noise], Tensor]]:
        return {"": self.sample_codes}

    def sample_codes(self, noise: Noise) -> Tensor:
        """z_1 of the generative model: z_N from the prior, then z_{i-1} ~ p(z_{i-1} | z_i) down the chain (Eq. 1)."""
        z = self.prior_scale * noise.normal("prior", *self.latent_shapes[-1])
        for i in range(self.levels - 1, 0, -1):
            mean, variance = self.decoders[i](z)
            z = draw(mean, variance, noise, f"decode{i}")
        return z

    def summary(self) -> str:
        shapes = " x ".join(map(str, self.image_shape)), *(" x ".join(map(str, s)) for s in self.latent_shapes)
        return ", ".join(f"z_{i} {shape}" if i else f"x {shape}" for i, shape in enumerate(shapes))


class HierarchicalWAE(StackedWAE):
    """The ablation: one WAE whose prior on z_1 is the chain of decoders above it (Eq. 8).

    Nothing in the objective depends on the encoders above the first: they keep their first weights, in no group.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        latent_dims: Annotated[list[Dimension], Field(min_length=1)],
        hidden: Annotated[list[Dimension], Field(min_length=1)],
        lambda_match: Weight,
        prior_scale: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__(
            image_shape, latent_dims=latent_dims, hidden=hidden, lambda_rec=0.0, lambda_match=lambda_match,
            weights="svhn", prior_scale=prior_scale,
        )  # fmt: skip
        upper = {f"level{i + 1}": (f"decoders.{i}",) for i in range(1, self.levels)}
        self.groups = {"level1": self.groups["level1"], **upper}

    def objective(self, batch: Batch) -> Terms:
        """Eq. 8: c(x, x_hat) through z_1, and the MMD between its codes and the z_1 of the generative model."""
        mean, variance = self.encoders[0](batch.x)
        z = draw(mean, variance, batch.noise, "z1")
        learned = self.sample_codes(batch.noise).to(z.dtype)
        mmd = imq_mmd(self.gather(z), self.gather(learned), self.prior_scale)
        return {"x": squared_cost(batch.x, self.decoders[0](z)), "mmd": self.lambda_match * mmd}


class ConvStackedWAE(StackedWAE):
    """StackedWAE with residual networks (SVHN with 6 levels, CelebA with 10).

    width multiplies the filters of every level. symmetric: pixels in [-1, 1] and a tanh, otherwise in [0, 1] and a
    sigmoid.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        table: Annotated[list[Level], Field(min_length=1)],
        width: Dimension = 1,
        symmetric: bool = True,
        lambda_rec: Weight,
        lambda_match: Weight,
        weights: Schedule,
        prior_scale: Annotated[float, Field(gt=0)] = 1.0,
        lambda_sigma: Weight = 0.0,
        lambda_sigma_decay: float = 0.0,
    ) -> None:
        Algorithm.__init__(self)
        self.value_range = (-1.0 if symmetric else 0.0, 1.0)
        shapes = check_table(image_shape, table)
        encoders: list[nn.Module] = []
        decoders: list[nn.Module] = []
        for i, level in enumerate(table):
            kernel, filters = level["kernel"], width * level["filters"]
            below, above = ([image_shape, *shapes][j][0] for j in (i, i + 1))
            down, up = (halve, double) if level["resample"] else (same, same)
            encoders.append(GaussianResNet(below, filters, above, kernel, down, nn.LeakyReLU(0.2)))
            if i:
                decoders.append(GaussianResNet(above, filters, below, kernel, up, nn.ReLU()))
            else:
                decoders.append(ImageResNet(above, filters, below, kernel, up, symmetric))
        self._stack(encoders, decoders, image_shape, shapes)
        self._weigh(lambda_rec, lambda_match, weights, prior_scale, lambda_sigma, lambda_sigma_decay)


def check_table(image_shape: tuple[int, int, int], table: list[Level]) -> list[tuple[int, ...]]:
    """The latent shapes of the table. ValueError where a level's side is not what its resampling gives."""
    shapes: list[tuple[int, ...]] = []
    side = image_shape[1:]
    for i, level in enumerate(table):
        if level["resample"] and (side[0] % 2 or side[1] % 2):
            raise ValueError(f"model.table.{i}: a side of {side[0]} x {side[1]} cannot be halved")
        side = (side[0] // 2, side[1] // 2) if level["resample"] else side
        shape = tuple(level["latent"])
        if shape[1:] != side:
            raise ValueError(f"model.table.{i}.latent={list(shape)}: the side at this level is {side[0]} x {side[1]}")
        shapes.append(shape)
    return shapes
