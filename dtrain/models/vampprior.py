"""VampPrior: a VAE whose prior is the encoder's mixture over learned pseudo-inputs (Tomczak & Welling, 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw, log_density, mixture_log_density
from dtrain.models.base import Count, DataFacts, Dimension, Prior, Scale, Terms, Update
from dtrain.models.vae import VAE, Likelihood
from dtrain.noise import Noise


class PseudoInputs(nn.Module):
    """forward() -> u [K, C, H, W] in [-1, 1]: K images, in [0, 1] drawn from N(mean, deviation^2) and clipped."""

    def __init__(self, count: int, image_shape: tuple[int, int, int], mean: float, deviation: float) -> None:
        super().__init__()
        self.pixels = nn.Parameter(mean + deviation * torch.randn(count, *image_shape))

    def forward(self) -> Tensor:
        return 2 * self.pixels.clamp(0, 1) - 1


class VampPrior(VAE):
    """p(z) = 1/K sum_k q(z | u_k), the u_k a group of their own.

    They pass through the encoder by its running statistics, which they do not move, in training as in evaluation.
    pseudo_mean, pseudo_deviation: of their pixels in [0, 1] before training; at 0 the clip leaves no gradient.
    warmup_images: over which the weight of the KL term rises from 0 to 1.
    """

    VARIANCES = (math.exp(-6), math.exp(2))

    def __init__(
        self,
        data: DataFacts,
        *,
        latent_dim: Dimension,
        width: Dimension = 64,
        likelihood: Likelihood = "gaussian",
        variance: Scale = 0.1,
        pseudo_inputs: Dimension = 500,
        pseudo_mean: Scale = 0.05,
        pseudo_deviation: Scale = 0.01,
        warmup_images: Count = 0,
    ) -> None:
        super().__init__(data, latent_dim=latent_dim, width=width, likelihood=likelihood, variance=variance)
        self.warmup_images = warmup_images
        self.pseudo_inputs = PseudoInputs(pseudo_inputs, data.image_shape, pseudo_mean, pseudo_deviation)
        self.groups = {**self.groups, "pseudo_inputs": ("pseudo_inputs",)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update(("autoencoder", "pseudo_inputs"), self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """-log p(x | z) + weight (log q(z | x) - log p(z)), one z ~ q(z | x) per image (Eq. 3)."""
        x, kl = self.terms(batch)
        seen = batch.noise.position.to(kl.dtype)
        return {"x": x, "kl": (kl * (seen / max(self.warmup_images, 1)).clamp(max=1)).mean()}

    def validate(self, batch: Batch) -> Terms:
        x, kl = self.terms(batch)
        return {"x": x, "kl": kl.mean()}

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p(x | z), mean over the batch; log q(z | x) - log p(z), [B]."""
        mean, variance = self.posterior(batch.x)
        z = draw(mean, variance, batch.noise, "z")
        kl = log_density(z, mean, variance) - mixture_log_density(z, *self.components())
        return self.error(batch.x, z), kl

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = super().posterior(x)
        return mean, variance.clamp(*self.VARIANCES)

    def components(self) -> tuple[Tensor, Tensor]:
        """Means and variances of q(z | u_k): both [K, latent_dim]."""
        with evaluating(self.encoder):
            return self.posterior(self.pseudo_inputs())

    def sample_codes(self, noise: Noise) -> Tensor:
        """z ~ q(z | u_k), every k with the same probability."""
        means, variances = self.components()
        k = (noise.uniform("component") * len(means)).long().clamp_max(len(means) - 1)
        return draw(means[k], variances[k], noise, "prior")

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"vampprior": self.sample_codes}

    def learned_images(self) -> Tensor:
        return self.pseudo_inputs()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The network normalises by its running statistics, and does not move them."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)
