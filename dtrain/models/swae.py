"""SWAE: a stacked Wasserstein autoencoder in two adversarial stages, several priors on one stage I (paper 000)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss, fooling_loss, gradient_ratio
from dtrain.losses.reconstruction import Reduction, relative_error, squared_error
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Stage, Terms, Update, Weight
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder, PatchCritic
from dtrain.nets.mlp import MLP, VARIANCE_FLOOR, CodeCritic
from dtrain.noise import Noise

Distribution = Literal["normal", "uniform"]


class Head(nn.Module):
    """Stage II for one prior: E2, G2 and their critic D2 on codes h of stage I.

    code_error: "sum", over the dimensions of h and relative to its variance, or "mean" over them.
    """

    def __init__(
        self,
        prior: Distribution,
        code_dim: int,
        latent_dim: int,
        hidden: int,
        code_error: Reduction,
        code_weight: float,
    ) -> None:
        super().__init__()
        self.prior, self.latent_dim = prior, latent_dim
        self.code_error, self.code_weight = code_error, code_weight
        self.encoder = MLP(code_dim, hidden, latent_dim, depth=3)
        self.decoder = MLP(latent_dim, hidden, code_dim, depth=3)
        self.critic = CodeCritic(latent_dim, hidden)

    def draw(self, noise: Noise) -> Tensor:
        """z from N(0, I) or U(-1, 1): [B, latent_dim]."""
        if self.prior == "normal":
            return noise.normal("prior", self.latent_dim)
        return 2 * noise.uniform("prior", self.latent_dim) - 1

    def sample_codes(self, noise: Noise) -> Tensor:
        """h = G2(z)."""
        return self.decoder(self.draw(noise))

    def reconstruct(self, h: Tensor) -> Tensor:
        """G2(E2 h)."""
        return self.decoder(self.encoder(h))

    def critic_loss(self, h: Tensor, noise: Noise) -> Terms:
        """D2 ascends log D2(z) + log(1 - D2(E2 h))."""
        with torch.no_grad():
            codes = self.encoder(h)
        return {"critic": critic_loss(self.critic(self.draw(noise)), self.critic(codes))}

    def autoencoder_loss(self, h: Tensor, variance: Tensor) -> Terms:
        """E2, G2 descend |h - G2(E2 h)|^2 - log D2(E2 h) (Eq. 4), the square weighted. variance: of h, [B]."""
        codes = self.encoder(h)
        return self.terms(h, variance, codes, self.decoder(codes))

    def terms(self, h: Tensor, variance: Tensor, codes: Tensor, decoded: Tensor) -> Terms:
        """The two terms of Eq. 4 for codes E2(h), decoded."""
        error = relative_error(h, decoded, variance) if self.code_error == "sum" else squared_error(h, decoded)
        return {"code": self.code_weight * error, "fool": fooling_loss(self.critic(codes))}


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
            self.groups[f"critic2_{prior}"] = (f"heads.{prior}.critic",)
            self.groups[f"autoencoder2_{prior}"] = (f"heads.{prior}.encoder", f"heads.{prior}.decoder")
        self.without = frozenset(
            f"{kind}2_{prior}"
            for kind in ("critic", "autoencoder")
            for prior in get_args(Distribution)
            if prior not in priors
        )

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
                update(f"critic2_{prior}", head.critic_loss, h, batch.noise.inner(i))
                update.watch(f"autoencoder2_{prior}", self.balance2, head, h, variance)
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
        return h, self.spread(h).mean().clamp_min(VARIANCE_FLOOR).expand(len(h))

    def spread(self, h: Tensor) -> Tensor:
        """Var(h_d) over the batch of all processes, without gradient: [code_dim]."""
        with torch.enable_grad():  # then gather takes it that all have as many rows, and asks nobody
            rows = self.gather(h.detach())
        return rows.var(0, correction=0)

    def scale(self, h: Tensor) -> Terms:
        """The mean standard deviation of h."""
        return {"deviation": self.spread(h).sqrt().mean()}

    def balance1(self, batch: Batch) -> Terms:
        """The ratio of the gradients of stage I's two terms at G1(E1 x)."""
        with torch.no_grad():
            reconstruction = self.reconstruct(batch.x)
        terms = self.terms1(batch.x, reconstruction.requires_grad_())
        return {"gradient_ratio": gradient_ratio(terms["x"], terms["fool"], reconstruction, self.gather)}

    def balance2(self, head: Head, h: Tensor, variance: Tensor) -> Terms:
        """The error of h in every reading; the ratio of the gradients of stage II's two terms at E2(h)."""
        with torch.no_grad():
            codes = head.encoder(h)
        decoded = head.decoder(codes.requires_grad_())
        terms = head.terms(h, variance, codes, decoded)
        return {
            "sum": squared_error(h, decoded, "sum"),
            "relative": relative_error(h, decoded, variance),
            "mean": squared_error(h, decoded),
            "gradient_ratio": gradient_ratio(terms["code"], terms["fool"], codes, self.gather),
        }

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
