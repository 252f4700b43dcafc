"""SWAE: a stacked Wasserstein autoencoder in two adversarial stages, several priors on one stage I (paper 000)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss, fooling_loss, gradient_ratio
from dtrain.losses.reconstruction import Reduction, squared_error, variance_of_batch
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Stage, Terms, Update, Weight
from dtrain.models.head import Distribution, Head, groups_of
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder, PatchCritic
from dtrain.nets.mlp import VARIANCE_FLOOR


class SWAE(Algorithm):
    """Stage I: E1, G1 and the image critic D1. Stage II: a head per prior, on codes that carry no gradient back.

    Level 1 of the hierarchy is h = E1(x); level 2 is z of the first prior. critic_strides: see PatchCritic.
    """

    value_range = (-1.0, 1.0)
    levels = 2

    def __init__(
        self,
        data: DataFacts,
        *,
        code_dim: Dimension,
        latent_dim: Dimension,
        width: Dimension = 64,
        critic_width: Dimension = 64,
        critic_strides: Dimension = 1,
        hidden: Dimension = 512,
        priors: Annotated[list[Distribution], Field(min_length=1)],
        lambda_adversary: Weight = 1e-3,
        code_error: Reduction = "sum",
        code_weight: Weight = 1.0,
        inner_steps: Dimension = 2,
        fresh_batches: bool = False,
    ) -> None:
        super().__init__()
        if len(set(priors)) < len(priors):
            raise ValueError(f"model.priors={priors}: each prior at most once")
        self.lambda_adversary, self.adversarial = lambda_adversary, lambda_adversary > 0
        self.inner_steps, self.fresh_batches = inner_steps, fresh_batches
        self.encoder = ImageEncoder(data.image_shape, code_dim, width)
        self.decoder = ImageDecoder(data.image_shape, code_dim, width)
        self.groups = {"autoencoder1": ("encoder", "decoder")}
        if self.adversarial:
            self.critic = PatchCritic(data.image_shape, critic_width, critic_strides)
            self.groups["critic1"] = ("critic",)
        self.heads = nn.ModuleDict(
            {prior: Head(prior, code_dim, latent_dim, hidden, code_error, code_weight) for prior in priors}
        )
        for prior in priors:
            self.groups |= groups_of(prior)
        absent = (prior for prior in get_args(Distribution) if prior not in priors)
        self.without = frozenset(group for prior in absent for group in groups_of(prior))

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("train", self.step, self.inner_steps if self.fresh_batches else 1),)

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """Algorithm 1. With fresh_batches the inner loop goes on to other images."""
        batch = next(batches)
        if self.adversarial:
            update("critic1", self.critic1_loss, batch)
            update.watch("autoencoder1", self.balance1, batch)
        update("autoencoder1", self.autoencoder1_loss, batch)
        for i in range(self.inner_steps):
            if self.fresh_batches and i:
                batch = next(batches)
            h, variance = update.value(self.codes, batch)
            update.watch("codes", self.scale, h)
            for prior, head in self.by_prior.items():
                z = update.value(head.draw, batch.noise.inner(i))
                update(f"critic2_{prior}", head.critic_loss, h, z)
                update.watch(f"autoencoder2_{prior}", head.balance, h, variance, self.gather)
                update(f"autoencoder2_{prior}", head.autoencoder_loss, h, variance)

    def critic1_loss(self, batch: Batch) -> Terms:
        """D1 ascends log D1(x) + log(1 - D1(G1(E1 x)))."""
        with torch.no_grad():
            fake = self.reconstruct(batch.x)
        return {"critic": critic_loss(self.critic(batch.x), self.critic(fake))}

    def autoencoder1_loss(self, batch: Batch) -> Terms:
        """E1, G1 descend |x - G1(E1 x)|^2 - lambda log D1(G1(E1 x)) (Eq. 3), the square as a mean over elements."""
        return self.terms1(batch.x, self.reconstruct(batch.x))

    def terms1(self, x: Tensor, reconstruction: Tensor) -> Terms:
        """The two terms of Eq. 3."""
        terms = {"x": squared_error(x, reconstruction)}
        if self.adversarial:
            terms["fool"] = self.lambda_adversary * fooling_loss(self.critic(reconstruction))
        return terms

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """h of stage I, and for every row its mean variance over the batch of all processes: [B, code_dim], [B]."""
        h = self.encoder(batch.x)
        return h, variance_of_batch(h, self.gather).mean().clamp_min(VARIANCE_FLOOR).expand(len(h))

    def scale(self, h: Tensor) -> Terms:
        """The mean standard deviation of h."""
        return {"deviation": variance_of_batch(h, self.gather).sqrt().mean()}

    def balance1(self, batch: Batch) -> Terms:
        """The ratio of the gradients of stage I's two terms at G1(E1 x)."""
        with torch.no_grad():
            reconstruction = self.reconstruct(batch.x)
        terms = self.terms1(batch.x, reconstruction.requires_grad_())
        return {"gradient_ratio": gradient_ratio(terms["x"], terms["fool"], reconstruction, self.gather)}

    def reconstructions(self, x: Tensor) -> dict[str, Tensor]:
        """G1(h0), and G1(G2(E2 h0)) for every prior."""
        h = self.encoder(x)
        codes = {"h0": h, **{prior: head.reconstruct(h) for prior, head in self.by_prior.items()}}
        return {name: self.decoder(c) for name, c in codes.items()}

    def validate(self, batch: Batch) -> Terms:
        """Squared error of every reconstruction, means over elements."""
        return {name: (x - batch.x).square().mean() for name, x in self.reconstructions(batch.x).items()}

    def critic_logits(self, x: Tensor) -> Tensor | None:
        return self.critic(x).flatten(1).mean(1) if self.adversarial else None

    @property
    def by_prior(self) -> dict[str, Head]:
        return {prior: head for prior, head in self.heads.items() if isinstance(head, Head)}

    @property
    def first(self) -> Head:
        """The head of the first prior."""
        return next(iter(self.by_prior.values()))

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        h = self.encoder(x)
        return h if level == 1 else self.first.encoder(h)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z if level == 1 else self.first.decoder(z))

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {prior: head.sample_codes for prior, head in self.by_prior.items()}
