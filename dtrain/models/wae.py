"""Wasserstein autoencoders: codes match a prior by MMD, or by a critic (Tolstikhin et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss, fooling_loss
from dtrain.losses.gaussian import log_density, squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.ae import AE
from dtrain.models.base import DataFacts, Dimension, Prior, Scale, Terms, Update, Weight
from dtrain.nets.mlp import CodeCritic
from dtrain.noise import Noise

Distribution = Literal["normal", "uniform"]
RECONSTRUCTION = 0.05  # of the squared error's sum over the elements


class WAE(AE):
    """An autoencoder whose code has a prior: N(0, prior_scale^2 I), or U(-prior_scale, prior_scale) behind a tanh."""

    def __init__(
        self,
        data: DataFacts,
        *,
        code_dim: Dimension,
        width: Dimension = 64,
        lambda_match: Weight,
        prior: Distribution = "normal",
        prior_scale: Scale = 1.0,
    ) -> None:
        super().__init__(data, code_dim=code_dim, width=width)
        self.lambda_match, self.prior, self.prior_scale = lambda_match, prior, prior_scale

    def error(self, x: Tensor, z: Tensor) -> Tensor:
        """0.05 |x - G(z)|^2."""
        return RECONSTRUCTION * squared_cost(x, self.decoder(z))

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        z = self.encoder(x)
        return z if self.prior == "normal" else self.prior_scale * z.tanh()

    def sample_codes(self, noise: Noise) -> Tensor:
        """z from the prior."""
        if self.prior == "normal":
            return self.prior_scale * noise.normal("prior", self.code_dim)
        return self.prior_scale * (2 * noise.uniform("prior", self.code_dim) - 1)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {self.prior: self.sample_codes}


class WAEMMD(WAE):
    """The kernel's C_base is 2 d sigma^2 with a normal prior, d sigma^2 with a uniform one."""

    batch_coupled = True  # the MMD of a batch is not a mean over its samples

    def objective(self, batch: Batch) -> Terms:
        """0.05 |x - G(E x)|^2 + lambda MMD(E x, z)."""
        z = self.encode(batch.x)
        sigma = self.prior_scale * (1 if self.prior == "normal" else math.sqrt(0.5))
        mmd = imq_mmd(self.gather(z), self.gather(self.sample_codes(batch.noise)), sigma)
        return {"x": self.error(batch.x, z), "mmd": self.lambda_match * mmd}


class WAEGAN(WAE):
    """density_trick: the critic's logits are log p(z) and what its network adds: how far q(z) is from the prior."""

    def __init__(
        self,
        data: DataFacts,
        *,
        code_dim: Dimension,
        width: Dimension = 64,
        lambda_match: Weight,
        prior: Distribution = "normal",
        prior_scale: Scale = 1.0,
        critic_hidden: Dimension = 512,
        density_trick: bool = False,
    ) -> None:
        super().__init__(
            data, code_dim=code_dim, width=width, lambda_match=lambda_match, prior=prior, prior_scale=prior_scale
        )
        if density_trick and prior == "uniform":
            raise ValueError("model.density_trick needs the density of model.prior=normal")
        self.density_trick = density_trick
        self.critic = CodeCritic(code_dim, critic_hidden, slope=0.0)
        self.groups = {"autoencoder": ("encoder", "decoder"), "critic": ("critic",)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """Algorithm 1: the critic, then the autoencoder."""
        batch = next(batches)
        update("critic", self.critic_loss, batch)
        update("autoencoder", self.objective, batch)

    def critic_loss(self, batch: Batch) -> Terms:
        """D ascends log D(z) + log(1 - D(E x))."""
        with torch.no_grad():
            codes = self.encode(batch.x)
        return {"critic": critic_loss(self.logits(self.sample_codes(batch.noise)), self.logits(codes))}

    def objective(self, batch: Batch) -> Terms:
        """0.05 |x - G(E x)|^2 - lambda log D(E x)."""
        z = self.encode(batch.x)
        return {"x": self.error(batch.x, z), "fool": self.lambda_match * fooling_loss(self.logits(z))}

    def logits(self, z: Tensor) -> Tensor:
        """Of D: [B, d] -> [B, 1]."""
        if not self.density_trick:
            return self.critic(z)
        prior = z.new_zeros(1), z.new_full((1,), self.prior_scale**2)
        return self.critic(z) + log_density(z, *prior)[:, None]
