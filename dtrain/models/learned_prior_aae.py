"""AAE with a learned prior: a code generator between the noise and the code (paper 002)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss, fooling_loss
from dtrain.losses.reconstruction import Reduction, scaled_gradient, squared_error
from dtrain.models.base import Count, DataFacts, Dimension, Prior, Scale, Terms, Update, Weight
from dtrain.models.conditions import ModeName, conditions
from dtrain.models.residual_ae import ResidualAE
from dtrain.nets.dcgan import ImageCritic
from dtrain.nets.mlp import MLP
from dtrain.nets.residual import CodeGenerator, ConditionalCritic, GivenCode
from dtrain.noise import Noise

GROUPS = ("encoder", "decoder", "code_generator", "image_critic", "q", "code_critic")


class LearnedPriorAAE(ResidualAE):
    """enc, dec, CG, the critics D_C of codes and D_I of images, and Q, which tells s from an image.

    learned_prior: A of the ablation; without it the code is s and the noise themselves. perceptual: B, L_rec of the
    features of D_I in place of pixels. decoder_in_both: C, prior improvement trains the decoder too. An AAE has none.
    """

    def __init__(
        self,
        data: DataFacts,
        *,
        mode: ModeName = "plain",
        code_dim: Dimension,
        noise_dim: Dimension | None = None,
        categories: Dimension = 10,
        sentence_dim: Count = 0,
        width: Dimension = 64,
        learned_prior: bool = True,
        perceptual: bool = True,
        decoder_in_both: bool = True,
        gaussian_encoder: bool = False,
        feature_error: Reduction = "mean",
        encoder_weight: Weight = 1.0,
        decoder_weight: Scale = 1.0,
        information_weight: Weight = 1.0,
        q_trains_trunk: bool = True,
    ) -> None:
        given = conditions(mode, data, categories)
        noise = noise_dim or code_dim - given.width
        if noise < 1 or not (learned_prior or noise + given.width == code_dim):
            raise ValueError(
                f"model.code_dim={code_dim}: there are {given.width} numbers of condition and {noise_dim} of "
                "noise (model.noise_dim; null takes the rest): without learned_prior the two must make up the code"
            )
        super().__init__(data.image_shape, code_dim, width, gaussian_encoder)
        self.conditions, self.condition, self.noise_dim = given, given.mode.of, noise
        self.perceptual, self.feature_error = perceptual, feature_error
        self.encoder_weight, self.decoder_weight = encoder_weight, decoder_weight
        self.information_weight, self.q_trains_trunk = information_weight, q_trains_trunk
        improved = {"decoder": decoder_in_both, "code_generator": learned_prior}
        self.informed = given.mode.information and any(improved.values())
        self.improved = tuple(g for g, trained in {**improved, "q": self.informed}.items() if trained)
        self._build(code_dim, sentence_dim, width, learned_prior)

    def _build(self, code_dim: int, sentence_dim: int, width: int, learned_prior: bool) -> None:
        """D_C, CG, D_I and Q, and a group for each network that is trained."""
        mode, s = self.conditions.mode, self.conditions.width
        self.code_critic = ConditionalCritic(code_dim, s * mode.code_critic)
        self.code_generator: nn.Module = GivenCode()
        if learned_prior:
            self.code_generator = CodeGenerator(self.noise_dim, s, code_dim, sentence_dim)
        used = {"encoder", "decoder", "code_critic", *self.improved}
        if self.perceptual or self.improved:
            self.image_critic = ImageCritic(self.canvas, s * mode.image_critic, width)
            used.add("image_critic")
        if self.informed:
            self.q = MLP(ImageCritic.HIDDEN, ImageCritic.HIDDEN, s, depth=0)
        self.groups = {name: (name,) for name in GROUPS if name in used}
        self.without = frozenset(GROUPS) - used

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """Algorithm 1: the AAE phase, then the prior improvement phase."""
        batch = next(batches)
        update("code_critic", self.code_critic_loss, batch)
        update(("encoder", "decoder"), self.autoencoder_loss, batch)
        if "image_critic" in self.groups:
            update("image_critic", self.image_critic_loss, batch)
        if self.improved:
            update(self.improved, self.prior_loss, batch)

    def code_critic_loss(self, batch: Batch) -> Terms:
        """D_C ascends log D_C(z_c, s) + log(1 - D_C(enc x, s)) (Eq. 5 and 8)."""
        s = self.conditions.own(batch)
        with torch.no_grad():
            real, fake = self.code_generator(batch.noise.normal("z1", self.noise_dim), s), self.code(batch)
        return {"critic": critic_loss(self.code_critic(real, s), self.code_critic(fake, s))}

    def autoencoder_loss(self, batch: Batch) -> Terms:
        """enc descends -log D_C(enc x, s) + its weight times L_rec, dec its own weight times L_rec."""
        s, code = self.conditions.own(batch), self.code(batch)
        reconstruction = self.decoder(scaled_gradient(code, self.encoder_weight / self.decoder_weight))
        error = self.error(self.padded(batch.x), reconstruction, s)
        return {"x": self.decoder_weight * error, "fool": fooling_loss(self.code_critic(code, s))}

    def image_critic_loss(self, batch: Batch) -> Terms:
        """D_I ascends log D_I(x) + log(1 - D_I(dec z_c)) (Eq. 4); q_trains_trunk: its layers below Q learn s too."""
        s = self.conditions.afresh(batch)
        with torch.no_grad():
            fake = self.decoder(self.code_generator(batch.noise.normal("z2", self.noise_dim), s))
        real, _, _ = self.image_critic(self.padded(batch.x), s)
        logits, _, hidden = self.image_critic(fake, s)
        terms = {"critic": critic_loss(real, logits)}
        return terms | (self.information(hidden, s) if self.q_trains_trunk else {})

    def prior_loss(self, batch: Batch) -> Terms:
        """CG, dec and Q descend -log D_I(dec z_c) - log Q(s | dec z_c) (Eq. 4 and 7)."""
        s = self.conditions.afresh(batch)
        fake = self.decoder(self.code_generator(batch.noise.normal("z2", self.noise_dim), s))
        logits, _, hidden = self.image_critic(fake, s)
        return {"fool": fooling_loss(logits)} | self.information(hidden, s)

    def information(self, hidden: Tensor, s: Tensor) -> Terms:
        """-log Q(s | x) by the features of x under D_I, where the mode has it."""
        return {"information": self.information_weight * F.cross_entropy(self.q(hidden), s)} if self.informed else {}

    def error(self, x: Tensor, reconstruction: Tensor, s: Tensor) -> Tensor:
        """L_rec: |F(x) - F(reconstruction)|^2 (Eq. 6), or of pixels."""
        if not self.perceptual:
            return squared_error(x, reconstruction)
        _, features, _ = self.image_critic(torch.cat([x, reconstruction]), torch.cat([s, s]))
        of_x, of_reconstruction = features.chunk(2)
        return squared_error(of_x, of_reconstruction, self.feature_error)

    def assigned(self, x: Tensor) -> Tensor:
        """The category that Q takes images for: [B, C, H, W] -> int64 [B]."""
        _, _, hidden = self.image_critic(self.padded(x), x.new_zeros(len(x), 0))
        return self.q(hidden).argmax(1)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        """Unsupervised: categories may be given too."""

        def codes(noise: Noise) -> Tensor:
            s = self.conditions.of_samples(noise, condition)
            return self.code_generator(noise.normal("prior", self.noise_dim), s)

        return {"learned" if "code_generator" in self.groups else "normal": codes}
