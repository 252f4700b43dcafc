"""What a step receives: images as floats on the device, with their labels and their own noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.noise import Noise


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch.

    x: float32 [B, C, H, W] in the algorithm's value range. noise: counter-based randomness of these rows.
    labels: int64 [B] or None. attributes: [B, A] or None. embeddings: float32 [B, E] or None, of one of
    each sample's captions. index: int64 [B], which samples of the split these are.
    """

    x: Tensor
    noise: Noise
    labels: Tensor | None = None
    attributes: Tensor | None = None
    embeddings: Tensor | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Batch:
        """The batch of some of the rows."""
        fields = [self.labels, self.attributes, self.embeddings, self.index]
        return Batch(self.x[rows], self.noise[rows], *(None if f is None else f[rows] for f in fields))

    def chunk(self, n: int) -> list[Batch]:
        """n equal micro-batches."""
        fields = [self.labels, self.attributes, self.embeddings, self.index]
        parts = [[None] * n if f is None else list(f.chunk(n)) for f in fields]
        return [Batch(*row) for row in zip(self.x.chunk(n), self.noise.chunk(n), *parts, strict=True)]


def to_float(images: Tensor, value_range: tuple[float, float], mirrored: Tensor | None = None) -> Tensor:
    """uint8 [B, H, W, C] on any device to float32 [B, C, H, W] in value_range; pixels are scaled only here.

    mirrored: bool [B], the images to flip left to right.
    """
    low, high = value_range
    x = images.permute(0, 3, 1, 2).contiguous()
    if mirrored is not None:
        # a select by bit mask: torch.where on bytes takes seven times as long
        mask = (mirrored.to(torch.uint8) * 255)[:, None, None, None]
        x = x ^ ((x ^ x.flip(3)) & mask)
    x = x.to(torch.float32)
    return x.mul_((high - low) / 255.0).add_(low) if low else x.mul_(high / 255.0)


def captions(noise: Noise, count: int) -> Tensor:
    """int64 [B]: which of a sample's `count` captions each row takes, equally likely, decided by its own counter."""
    return (noise.uniform("caption") * count).long().clamp_max(count - 1)  # a float32 below 1 may round up to it


def flipped(noise: Noise) -> Tensor:
    """bool [B]: which images to flip, each with probability 1/2, decided by its own counter."""
    return noise.uniform("flip") < 0.5
