"""StackedWAE: a deep latent hierarchy trained by stacking Wasserstein autoencoders, and its ablation (paper 001)."""

from __future__ import annotations

import math
from typing import Literal

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw, expected_squared_cost, log_variance_penalty, squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import DataFacts, Dimension, Scale, Terms, Weight
from dtrain.models.hierarchy import Hierarchy
from dtrain.models.levels import Levels

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
    """lambda_sigma * exp(-decay * i), i = 0 .. N-1: weights of the log-variance penalty (Eq. 17).

    As the authors' code, which scales the deepest by another 1 to 2.
    """
    return [lambda_sigma * math.exp(-decay * i) for i in range(levels)]


class StackedWAE(Hierarchy):
    """Every level is a WAE on the codes of the one below, all trained together; each has its own optimizer."""

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
        super().__init__(data, levels, width=width, symmetric=symmetric, prior_scale=prior_scale)
        self.lambda_match = lambda_match
        self.weights = level_weights(schedule, lambda_rec, [math.prod(s) for s in self.shapes[1:]])
        self.penalised = lambda_sigma > 0
        self.variance_weights = variance_weights(lambda_sigma, lambda_sigma_decay, self.levels)

    def objective(self, batch: Batch) -> Terms:
        """Eq. 14 (and Eq. 17): every level is decoded from one sample of the next, one level only.

        The targets z_i are not detached: gradients reach both sides of each cost.
        """
        terms: Terms = {}
        below, noise = batch.x, batch.noise.ahead(self.sites("z", self.levels))
        for i in range(self.levels):
            mean, variance = self.encoders[i](below)
            z = draw(mean, variance, noise, f"z{i + 1}")
            if i == 0:
                terms["x"] = squared_cost(batch.x, self.decoders[0](z))
            else:
                terms[f"z{i}"] = self.weights[i - 1] * expected_squared_cost(below, *self.decoders[i](z))
            if self.penalised:
                terms[f"var{i + 1}"] = self.variance_weights[i] * log_variance_penalty(variance)
            below = z
        mmd = imq_mmd(self.gather(below), self.gather(self.draw_deepest(noise)), self.prior_scale)
        terms["mmd"] = self.lambda_match * mmd
        return terms


class HierarchicalWAE(Hierarchy):
    """The ablation: one WAE whose prior on z_1 is the chain of decoders above it (Eq. 8).

    Nothing in the objective depends on the encoders above the first: they keep their first weights, in no group.
    """

    batch_coupled = True

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
        super().__init__(data, levels, width=width, symmetric=symmetric, prior_scale=prior_scale)
        self.lambda_match = lambda_match
        upper = {f"level{i + 1}": (f"decoders.{i}",) for i in range(1, self.levels)}
        self.groups = {"level1": self.groups["level1"], **upper}

    def objective(self, batch: Batch) -> Terms:
        """Eq. 8: c(x, x_hat) through z_1, and the MMD between its codes and the z_1 of the generative model."""
        noise = batch.noise.ahead({"z1": self.shapes[1], **self.sites("decode", self.levels - 1)})
        mean, variance = self.encoders[0](batch.x)
        z = draw(mean, variance, noise, "z1")
        learned = self.chain(noise, noise)
        # The kernel's scales are by d_1, which the paper does not state; the authors' code has d_N.
        mmd = imq_mmd(self.gather(z), self.gather(learned), self.prior_scale)
        return {"x": squared_cost(batch.x, self.decoders[0](z)), "mmd": self.lambda_match * mmd}
