"""VAE: an autoencoder trained on the evidence lower bound (Kingma & Welling, 2014)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw, kl_to_standard_normal, squared_cost
from dtrain.losses.reconstruction import cross_entropy
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Scale, Terms, Update
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder
from dtrain.nets.mlp import variance_of
from dtrain.noise import Noise

Likelihood = Literal["gaussian", "bernoulli"]


class GaussianLikelihood(nn.Module):
    """p(x | z) = N(x; mean, sigma^2 I) with one learned sigma^2 for all pixels of all images.

    forward(x, mean), both [B, ...] -> scalar: -log p(x | z) = 1/2 (|x - mean|^2 / sigma^2 + D log(2 pi sigma^2)),
    summed over D dimensions, mean over the batch. (Kingma & Welling, 2014, Appendix C.2, there with a variance per
    pixel.)
    """

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor([math.log(variance)]))  # [1]: FSDP shards no scalars

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        log_normaliser = math.prod(x.shape[1:]) * (math.log(2 * math.pi) + self.log_variance)
        return 0.5 * (squared_cost(x, mean) * (-self.log_variance).exp() + log_normaliser).squeeze()


class VAE(Algorithm):
    """q(z | x) a diagonal Gaussian, p(x | z) around the decoder's image, prior N(0, I) on z.

    likelihood: gaussian, or bernoulli of pixels in [0, 1]. variance: the Gaussian's sigma^2 before training.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        data: DataFacts,
        *,
        latent_dim: Dimension,
        width: Dimension = 64,
        likelihood: Likelihood = "gaussian",
        variance: Scale = 0.1,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = ImageEncoder(data.image_shape, 2 * latent_dim, width)
        self.decoder = ImageDecoder(data.image_shape, latent_dim, width, squash=likelihood == "gaussian")
        self.groups = {"autoencoder": ("encoder", "decoder")}
        self.gaussian = likelihood == "gaussian"
        if self.gaussian:
            self.likelihood = GaussianLikelihood(variance)
            self.groups = {"autoencoder": ("encoder", "decoder", "likelihood")}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update("autoencoder", self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """-log p(x | z) + KL(q(z | x) || p(z)), one z ~ q(z | x) per image (Eq. 10, L = 1)."""
        mean, variance = self.posterior(batch.x)
        z = draw(mean, variance, batch.noise, "z")
        return {
            "x": self.error(batch.x, z),
            "kl": kl_to_standard_normal(mean, variance),
        }

    def error(self, x: Tensor, z: Tensor) -> Tensor:
        """-log p(x | z), mean over the batch."""
        out = self.decoder(z)
        return self.likelihood(x, out) if self.gaussian else cross_entropy(out, x)

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z | x): [B, C, H, W] -> both [B, latent_dim]."""
        mean, raw = self.encoder(x).chunk(2, dim=1)
        return mean, variance_of(raw)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        mean, _ = self.posterior(x)
        return mean

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield self.posterior(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        out = self.decoder(z)
        return out if self.gaussian else out.tanh()

    def sample_codes(self, noise: Noise) -> Tensor:
        """z from the prior."""
        return noise.normal("prior", self.latent_dim)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"normal": self.sample_codes}
