"""ALI and ALICE: encoder and generator against a critic of pairs (Dumoulin et al., 2017; Li et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss
from dtrain.losses.gaussian import draw
from dtrain.losses.reconstruction import squared_error
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Terms, Update, Weight
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder, JointCritic
from dtrain.nets.mlp import variance_of
from dtrain.noise import Noise


class ALI(Algorithm):
    """The critic tells (x, E(x)) from (G(z), z), z from N(0, I), E(x) a draw of a Gaussian.

    cycle_weight, code_cycle_weight: of |x - G(E x)|_1 and |z - E(G z)|_1, means over elements; ALICE's where not 0.
    dropout: of the critic's last hidden layers.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        data: DataFacts,
        *,
        latent_dim: Dimension,
        width: Dimension = 64,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        cycle_weight: Weight = 0.0,
        code_cycle_weight: Weight = 0.0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.dropout = latent_dim, dropout
        self.cycle_weight, self.code_cycle_weight = cycle_weight, code_cycle_weight
        self.encoder = ImageEncoder(data.image_shape, 2 * latent_dim, width)
        self.decoder = ImageDecoder(data.image_shape, latent_dim, width)
        self.critic = JointCritic(data.image_shape, latent_dim, width)
        self.groups = {"autoencoder": ("encoder", "decoder"), "critic": ("critic",)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """Algorithm 1 of ALI: the critic and the two others, in turn."""
        batch = next(batches)
        update("critic", self.critic_loss, batch)
        update("autoencoder", self.autoencoder_loss, batch)

    def critic_loss(self, batch: Batch) -> Terms:
        """sp(-D(x, E x)) + sp(D(G z, z)), sp the softplus."""
        with torch.no_grad():
            code, z, fake = self.pairs(batch)
        encoded, generated = self.judged(batch, "critic", code, z, fake)
        return {"critic": critic_loss(encoded, generated)}

    def autoencoder_loss(self, batch: Batch) -> Terms:
        """sp(D(x, E x)) + sp(-D(G z, z)), and ALICE's costs of a cycle."""
        code, z, fake = self.pairs(batch)
        encoded, generated = self.judged(batch, "fool", code, z, fake)
        terms = {"fool": critic_loss(generated, encoded)}
        if self.cycle_weight:
            terms["cycle"] = self.cycle_weight * (batch.x - self.decoder(code)).abs().mean()
        if self.code_cycle_weight:
            again = draw(*self.posterior(fake), batch.noise, "again")
            terms["code_cycle"] = self.code_cycle_weight * (z - again).abs().mean()
        return terms

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """E(x), z and G(z)."""
        z = self.sample_codes(batch.noise)
        return draw(*self.posterior(batch.x), batch.noise, "code"), z, self.decoder(z)

    def judged(self, batch: Batch, site: str, code: Tensor, z: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of D(x, E x) and of D(G z, z), each with units dropped at random."""
        return tuple(
            self.critic(x, c, self.kept(batch.noise, f"{site} {which}"))
            for which, x, c in (("encoded", batch.x, code), ("generated", fake, z))
        )

    def kept(self, noise: Noise, site: str) -> Tensor:
        """Dropout's factors of the hidden units, 0 or 1 / (1 - p)."""
        return (noise.uniform(site, *JointCritic.KEPT) > self.dropout).to(noise.dtype) / (1 - self.dropout)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z | x): [B, C, H, W] -> both [B, latent_dim]."""
        mean, raw = self.encoder(x).chunk(2, dim=1)
        return mean, variance_of(raw)

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield self.posterior(x)

    def validate(self, batch: Batch) -> Terms:
        """Squared error of the pixels, mean over elements."""
        return {"x": squared_error(batch.x, self.reconstruct(batch.x))}

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z)

    def sample_codes(self, noise: Noise) -> Tensor:
        """z from the prior."""
        return noise.normal("prior", self.latent_dim)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"normal": self.sample_codes}
