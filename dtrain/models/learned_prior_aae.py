"""AAE with a learned prior: a code generator between the noise and the code (paper 002)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtrain.data.batch import Batch
from dtrain.losses.adversarial import critic_loss, fooling_loss
from dtrain.losses.gaussian import draw
from dtrain.losses.reconstruction import Reduction, scaled_gradient, squared_error
from dtrain.models.base import Algorithm, Count, DataFacts, Dimension, Prior, Scale, Terms, Update, Weight
from dtrain.nets.dcgan import ImageCritic
from dtrain.nets.mlp import MLP, CodeCritic, variance_of
from dtrain.nets.residual import CodeGenerator, GivenCode, ResidualDecoder, ResidualEncoder
from dtrain.noise import Noise

Condition = Callable[[Noise, Tensor | None, int, str], Tensor]
"""s from (noise, labels or embeddings of these rows, its width, the name of the draw): [B, width]."""


def nothing(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """[B, 0]."""
    return noise.position.new_zeros(len(noise.position), 0, dtype=noise.dtype)


def drawn(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """One-hot rows, each category with the same probability."""
    return F.one_hot((noise.uniform(name) * width).long().clamp_max(width - 1), width).to(noise.dtype)


def category(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """One-hot rows of the labels given, or drawn where none are."""
    return drawn(noise, None, width, name) if given is None else F.one_hot(given, width).to(noise.dtype)


def embedding(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """The embeddings given."""
    assert given is not None
    return given


@dataclass(frozen=True)
class Mode:
    """Where the condition s comes from, and who sees it beside the code generator.

    of: what of the data. width: of s, given the facts of the data and model.categories. own: s of an image, in the
    AAE phase and for samples. prior: s in the prior improvement phase, "drawn afresh from p(s)".
    """

    of: Literal["labels", "embeddings"] | None
    width: Callable[[DataFacts, int], int | None]
    own: Condition
    prior: Condition
    code_critic: bool = False
    image_critic: bool = False
    information: bool = False


MODES = {
    "plain": Mode(None, lambda data, k: 0, nothing, nothing),
    # Fig. 4
    "supervised": Mode("labels", lambda data, k: data.classes, category, drawn, code_critic=True, information=True),
    # Fig. 5
    "unsupervised": Mode(None, lambda data, k: k, category, drawn, information=True),
    # Section V: the critic of images sees pairs, each of an image and its own sentence.
    "text": Mode(
        "embeddings", lambda data, k: data.embedding, embedding, embedding, code_critic=True, image_critic=True
    ),
}
GROUPS = ("encoder", "decoder", "code_generator", "image_critic", "q", "code_critic")
CODE_CRITIC = (1000, 500, 200)  # hidden units, Table A3


class LearnedPriorAAE(Algorithm):
    """enc, dec, CG, the critics D_C of codes and D_I of images, and Q, which tells s from an image.

    learned_prior: A of the ablation; without it the code is s and the noise themselves. perceptual: B, L_rec of the
    features of D_I in place of pixels. decoder_in_both: C, the prior improvement phase trains the decoder too. An AAE
    has none of them. Images are padded with the lowest value to 32 or 64 pixels a side.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        data: DataFacts,
        *,
        mode: Literal["plain", "supervised", "unsupervised", "text"] = "plain",
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
        super().__init__()
        self.mode, self.condition = MODES[mode], MODES[mode].of
        self.condition_dim = _width(self.mode, data, categories)
        self.noise_dim = noise_dim or code_dim - self.condition_dim
        if self.noise_dim < 1 or not (learned_prior or self.noise_dim + self.condition_dim == code_dim):
            raise ValueError(
                f"model.code_dim={code_dim}: there are {self.condition_dim} numbers of condition and {noise_dim} of "
                "noise (model.noise_dim; null takes the rest): without learned_prior the two must make up the code"
            )
        self.perceptual, self.gaussian_encoder, self.feature_error = perceptual, gaussian_encoder, feature_error
        self.encoder_weight, self.decoder_weight = encoder_weight, decoder_weight
        self.information_weight, self.q_trains_trunk = information_weight, q_trains_trunk
        improved = {"decoder": decoder_in_both, "code_generator": learned_prior}
        self.informed = self.mode.information and any(improved.values())
        self.improved = tuple(g for g, trained in {**improved, "q": self.informed}.items() if trained)
        self._build(data.image_shape, code_dim, sentence_dim, width, learned_prior)

    def _build(
        self, image_shape: tuple[int, int, int], code_dim: int, sentence_dim: int, width: int, learned_prior: bool
    ) -> None:
        """The networks, and a group for each that is trained."""
        image, s = _canvas(image_shape), self.condition_dim
        self.margin = (image[1] - image_shape[1]) // 2
        self.to_code_critic, self.to_image_critic = s * self.mode.code_critic, s * self.mode.image_critic
        self.encoder = ResidualEncoder(image, 2 * code_dim, (1 + self.gaussian_encoder) * code_dim, width)
        self.decoder = ResidualDecoder(image, code_dim, width)
        self.code_critic = CodeCritic(code_dim + self.to_code_critic, CODE_CRITIC)
        self.code_generator: nn.Module = GivenCode()
        if learned_prior:
            self.code_generator = CodeGenerator(self.noise_dim, s, code_dim, sentence_dim)
        used = {"encoder", "decoder", "code_critic", *self.improved}
        if self.perceptual or self.improved:
            self.image_critic = ImageCritic(image, self.to_image_critic, width)
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
        s = self.own(batch)
        with torch.no_grad():
            real, fake = self.code_generator(batch.noise.normal("z1", self.noise_dim), s), self.code(batch)
        return {"critic": critic_loss(self.judged_code(real, s), self.judged_code(fake, s))}

    def autoencoder_loss(self, batch: Batch) -> Terms:
        """enc descends -log D_C(enc x, s) + its weight times L_rec, dec its own weight times L_rec."""
        s, code = self.own(batch), self.code(batch)
        reconstruction = self.decoder(scaled_gradient(code, self.encoder_weight / self.decoder_weight))
        error = self.error(self.padded(batch.x), reconstruction, s)
        return {"x": self.decoder_weight * error, "fool": fooling_loss(self.judged_code(code, s))}

    def image_critic_loss(self, batch: Batch) -> Terms:
        """D_I ascends log D_I(x) + log(1 - D_I(dec z_c)) (Eq. 4); q_trains_trunk: its layers below Q learn s too."""
        s = self.afresh(batch)
        with torch.no_grad():
            fake = self.decoder(self.code_generator(batch.noise.normal("z2", self.noise_dim), s))
        real, _, _ = self.judged_image(self.padded(batch.x), s)
        logits, _, hidden = self.judged_image(fake, s)
        terms = {"critic": critic_loss(real, logits)}
        return terms | (self.information(hidden, s) if self.q_trains_trunk else {})

    def prior_loss(self, batch: Batch) -> Terms:
        """CG, dec and Q descend -log D_I(dec z_c) - log Q(s | dec z_c) (Eq. 4 and 7)."""
        s = self.afresh(batch)
        fake = self.decoder(self.code_generator(batch.noise.normal("z2", self.noise_dim), s))
        logits, _, hidden = self.judged_image(fake, s)
        return {"fool": fooling_loss(logits)} | self.information(hidden, s)

    def information(self, hidden: Tensor, s: Tensor) -> Terms:
        """-log Q(s | x) by the features of x under D_I, where the mode has it."""
        return {"information": self.information_weight * F.cross_entropy(self.q(hidden), s)} if self.informed else {}

    def error(self, x: Tensor, reconstruction: Tensor, s: Tensor) -> Tensor:
        """L_rec: |F(x) - F(reconstruction)|^2 (Eq. 6), or of pixels."""
        if not self.perceptual:
            return squared_error(x, reconstruction)
        _, features, _ = self.judged_image(torch.cat([x, reconstruction]), torch.cat([s, s]))
        of_x, of_reconstruction = features.chunk(2)
        return squared_error(of_x, of_reconstruction, self.feature_error)

    def own(self, batch: Batch) -> Tensor:
        """s of the AAE phase: of the images themselves, if they have one."""
        return self.mode.own(batch.noise, self.given(batch), self.condition_dim, "s1")

    def afresh(self, batch: Batch) -> Tensor:
        """s of the prior improvement phase."""
        return self.mode.prior(batch.noise, self.given(batch), self.condition_dim, "s2")

    def given(self, batch: Batch) -> Tensor | None:
        """What the data says of the images."""
        return {None: None, "labels": batch.labels, "embeddings": batch.embeddings}[self.condition]

    def judged_code(self, code: Tensor, s: Tensor) -> Tensor:
        """Logits of D_C, which sees s where the mode says so."""
        return self.code_critic(torch.cat([code, s[:, : self.to_code_critic]], 1))

    def judged_image(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, F and the features for Q of D_I, which sees s where the mode says so."""
        return self.image_critic(x, s[:, : self.to_image_critic])

    def code(self, batch: Batch) -> Tensor:
        """enc(x); a draw around it where the encoder is Gaussian."""
        mean, variance = self.posterior(batch.x)
        return mean if variance is None else draw(mean, variance, batch.noise, "code")

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, of a Gaussian encoder, variance of the codes of images."""
        mean, *raw = self.encoder(self.padded(x)).chunk(1 + self.gaussian_encoder, dim=1)
        return mean, variance_of(raw[0]) if raw else None

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield self.posterior(x)

    def padded(self, x: Tensor) -> Tensor:
        """Images in the networks' size."""
        return F.pad(x, [self.margin] * 4, value=self.value_range[0])

    def validate(self, batch: Batch) -> Terms:
        """Squared error of the pixels, mean over elements."""
        return {"x": squared_error(self.reconstruct(batch.x), batch.x)}

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return F.pad(self.decoder(z), [-self.margin] * 4)

    def assigned(self, x: Tensor) -> Tensor:
        """The category that Q takes images for: [B, C, H, W] -> int64 [B]."""
        _, _, hidden = self.image_critic(self.padded(x), x.new_zeros(len(x), 0))
        return self.q(hidden).argmax(1)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        """Unsupervised: categories may be given too."""

        def codes(noise: Noise) -> Tensor:
            s = self.mode.own(noise, condition, self.condition_dim, "s")
            return self.code_generator(noise.normal("prior", self.noise_dim), s)

        return {"learned" if "code_generator" in self.groups else "normal": codes}


def _width(mode: Mode, data: DataFacts, categories: int) -> int:
    """Of the condition. ValueError where the data has none."""
    width = mode.width(data, categories)
    if width is None:
        how = "; prepare it with --embed or --embeddings" if mode.of == "embeddings" else ""
        raise ValueError(f"model.mode needs {mode.of}, which the data does not have{how}")
    return width


def _canvas(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of padded images. ValueError for what does not fit."""
    channels, height, width = image_shape
    if height != width or height % 2 or height > 64:
        raise ValueError(f"images must be square with an even side of at most 64, got {height} x {width}")
    side = 32 if height <= 32 else 64
    return channels, side, side
