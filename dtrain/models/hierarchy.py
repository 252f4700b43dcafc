"""A deep latent hierarchy of Gaussian encoders and decoders, whatever it is trained on (paper 001)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw
from dtrain.models.base import Algorithm, DataFacts, Prior, Terms, Update
from dtrain.models.levels import Level, latent_shapes
from dtrain.noise import Noise


class Hierarchy(Algorithm):
    """Encoders q(z_i | z_{i-1}) and decoders p(z_{i-1} | z_i), z_0 = x, one parameter group per level.

    encoders[i], decoders[i] connect level i (0 is the image) and level i + 1. All are diagonal Gaussians except the
    bottom decoder, which is deterministic. width multiplies the units or filters of every level. symmetric: pixels in
    [-1, 1] and a tanh, otherwise in [0, 1] and a sigmoid. The prior of z_N is N(0, prior_scale^2 I).
    """

    def __init__(
        self, data: DataFacts, levels: list[Level], *, width: int, symmetric: bool, prior_scale: float
    ) -> None:
        super().__init__()
        self.value_range = (-1.0 if symmetric else 0.0, 1.0)
        self.prior_scale = prior_scale
        self.shapes = latent_shapes(data.image_shape, levels)
        self.levels = len(levels)
        self.encoders = nn.ModuleList(
            [r.encoder(below, width) for r, below in zip(levels, self.shapes, strict=False)]
        )
        upper = [r.decoder(below, width) for r, below in zip(levels[1:], self.shapes[1:], strict=False)]
        self.decoders = nn.ModuleList([levels[0].image_decoder(data.image_shape, width, symmetric), *upper])
        self.groups = {f"level{i + 1}": (f"encoders.{i}", f"decoders.{i}") for i in range(self.levels)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update(tuple(self.groups), self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """What all levels are trained on together."""
        raise NotImplementedError

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        *_, (z, _) = islice(self.posteriors(x), level)
        return z

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each level's, given the mean of the one before."""
        for encoder in self.encoders:
            x, variance = encoder(x)
            yield x, variance

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        for decoder in reversed(self.decoders[1:level]):
            z, _ = decoder(z)
        return self.decoders[0](z)

    def sites(self, name: str, count: int) -> dict[str, tuple[int, ...]]:
        """The places of a step that draw: <name>1 .. <name>count, each of its level's code, and the prior."""
        return {**{f"{name}{i}": self.shapes[i] for i in range(1, count + 1)}, "prior": self.shapes[-1]}

    def draw_deepest(self, noise: Noise) -> Tensor:
        """z_N from its prior N(0, prior_scale^2 I)."""
        return self.prior_scale * noise.normal("prior", *self.shapes[-1])

    def chain(self, deepest: Noise, noise: Noise) -> Tensor:
        """z_1 of the generative model: z_N from the prior, then z_{i-1} ~ p(z_{i-1} | z_i) down the chain (Eq. 1)."""
        z = self.draw_deepest(deepest)
        for i in range(self.levels - 1, 0, -1):
            mean, variance = self.decoders[i](z)
            z = draw(mean, variance, noise, f"decode{i}")
        return z

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"chain": lambda noise: self.chain(noise, noise)}

    def grid(self, side: int) -> Tensor | None:
        """From -2 to 2 standard deviations of the prior: to the right the first coordinate, upwards the second."""
        if self.shapes[-1] != (2,):
            return None
        line = self.prior_scale * torch.linspace(-2, 2, side)
        return torch.stack(torch.meshgrid(-line, line, indexing="ij")[::-1], dim=-1).reshape(-1, 2)

    def summary(self) -> str:
        shapes = [" x ".join(map(str, s)) for s in self.shapes]
        return ", ".join(f"z_{i} {shape}" if i else f"x {shape}" for i, shape in enumerate(shapes))
