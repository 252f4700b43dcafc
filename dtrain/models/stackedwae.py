"""StackedWAE: a deep latent hierarchy trained by stacking Wasserstein autoencoders (paper 001)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import expected_squared_cost, log_variance_penalty, squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, Terms, Update
from dtrain.nets.mlp import GaussianMLP, ImageMLP
from dtrain.noise import Noise

Dimension = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Schedule = Literal["mnist", "svhn", "celeba"]


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
        self.levels, self.latent_dims = len(latent_dims), latent_dims
        self.lambda_match, self.prior_scale = lambda_match, prior_scale
        self.weights = level_weights(weights, lambda_rec, latent_dims)
        self.variance_weights = variance_weights(lambda_sigma, lambda_sigma_decay, self.levels)
        below = [math.prod(image_shape), *latent_dims]
        self.encoders = nn.ModuleList(GaussianMLP(below[i], hidden[i], below[i + 1]) for i in range(self.levels))
        self.decoders = nn.ModuleList(
            GaussianMLP(below[i + 1], hidden[i], below[i]) if i else ImageMLP(below[1], hidden[0], image_shape)
            for i in range(self.levels)
        )
        self.groups = {f"level{i + 1}": (f"encoders.{i}", f"decoders.{i}") for i in range(self.levels)}

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
        for encoder in self.encoders[:level]:
            x, _ = encoder(x)
        return x

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        for decoder in reversed(self.decoders[1:level]):
            z, _ = decoder(z)
        return self.decoders[0](z)

    def sample(self, noise: Noise) -> Tensor:
        """z_N from the prior, then z_{i-1} ~ p(z_{i-1} | z_i) down the chain (Eq. 1)."""
        z = self.prior_scale * noise.normal("prior", self.latent_dims[-1])
        for i in range(self.levels - 1, 0, -1):
            mean, variance = self.decoders[i](z)
            z = draw(mean, variance, noise, f"decode{i}")
        return self.decoders[0](z)
