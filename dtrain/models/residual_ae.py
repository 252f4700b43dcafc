"""An autoencoder of residual networks on padded images, the trunk of the AAE with a learned prior (paper 002)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import draw
from dtrain.losses.reconstruction import squared_error
from dtrain.models.base import Algorithm, Terms
from dtrain.nets.mlp import variance_of
from dtrain.nets.residual import ResidualDecoder, ResidualEncoder


class ResidualAE(Algorithm):
    """enc and dec, whose images are padded with the lowest value to 32 or 64 pixels a side.

    canvas: the shape of padded images. gaussian: the encoder gives a variance too.
    """

    value_range = (-1.0, 1.0)

    def __init__(self, image_shape: tuple[int, int, int], code_dim: int, width: int, gaussian: bool) -> None:
        super().__init__()
        self.canvas, self.gaussian_encoder = _canvas(image_shape), gaussian
        self.margin = (self.canvas[1] - image_shape[1]) // 2
        self.encoder = ResidualEncoder(self.canvas, 2 * code_dim, (1 + gaussian) * code_dim, width)
        self.decoder = ResidualDecoder(self.canvas, code_dim, width)

    def padded(self, x: Tensor) -> Tensor:
        """Images in the networks' size."""
        return F.pad(x, [self.margin] * 4, value=self.value_range[0])

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

    def validate(self, batch: Batch) -> Terms:
        """Squared error of the pixels, mean over elements."""
        return {"x": squared_error(self.reconstruct(batch.x), batch.x)}

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return F.pad(self.decoder(z), [-self.margin] * 4)


def _canvas(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of padded images. ValueError for what does not fit."""
    channels, height, width = image_shape
    if height != width or height % 2 or height > 64:
        raise ValueError(f"images must be square with an even side of at most 64, got {height} x {width}")
    side = 32 if height <= 32 else 64
    return channels, side, side
