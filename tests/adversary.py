"""A tiny adversarial algorithm with two critics and alternating updates: exercises the updater, paper-free.

No batch norm, so it can be micro-batched; the image critic returns features as a second output; the decoder is
trained by two updates with one optimizer state; stage II sees detached codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtrain.data.batch import Batch
from dtrain.models.base import Algorithm, DataFacts, Prior, Terms, Update


class Critic(nn.Module):
    """forward(x) -> logits, features: hooks of a sharded network fire on forward only."""

    def __init__(self, inputs: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.LeakyReLU(0.2))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features), features


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 24), nn.Tanh(), nn.Linear(24, outputs))


class Adversary(Algorithm):
    def __init__(self, data: DataFacts, *, code: int = 4, inner: int = 2) -> None:
        super().__init__()
        pixels = math.prod(data.image_shape)
        self.inner, self.code, self.shape = inner, code, data.image_shape
        self.encoder, self.decoder = mlp(pixels, code), mlp(code, pixels)
        self.image_critic, self.code_critic = Critic(pixels), Critic(code)
        self.groups = {
            "encoder": ("encoder",),
            "decoder": ("decoder",),
            "image_critic": ("image_critic",),
            "code_critic": ("code_critic",),
        }

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        batch = next(batches)
        update("image_critic", self.critic_loss, batch)
        update(("encoder", "decoder"), self.autoencoder_loss, batch)
        for _ in range(self.inner):
            update("code_critic", self.code_loss, batch)
        update("decoder", self.prior_loss, batch)

    def critic_loss(self, batch: Batch) -> Terms:
        with torch.no_grad():
            fake = self.reconstruct(batch.x)
        return {
            "real": F.softplus(-self.image_critic(batch.x)[0]).mean(),
            "fake": F.softplus(self.image_critic(fake)[0]).mean(),
        }

    def autoencoder_loss(self, batch: Batch) -> Terms:
        reconstruction = self.reconstruct(batch.x)
        logits, features = self.image_critic(reconstruction)
        _, target = self.image_critic(batch.x)
        return {
            "pixels": (reconstruction - batch.x).square().mean(),
            "features": (features - target).square().mean(),
            "fool": 0.1 * F.softplus(-logits).mean(),
        }

    def code_loss(self, batch: Batch) -> Terms:
        with torch.no_grad():
            codes = self.encode(batch.x)
        prior = batch.noise.normal("prior", self.code)
        return {
            "critic": F.softplus(-self.code_critic(prior)[0]).mean() + F.softplus(self.code_critic(codes)[0]).mean()
        }

    def prior_loss(self, batch: Batch) -> Terms:
        z = batch.noise.normal("generate", self.code)
        return {"fool": F.softplus(-self.image_critic(self.decode(z))[0]).mean()}

    def validate(self, batch: Batch) -> Terms:
        return {"pixels": (self.reconstruct(batch.x) - batch.x).square().mean()}

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z).sigmoid().view(-1, *self.shape)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"normal": lambda noise: noise.normal("sample", self.code)}
