"""A tiny algorithm conditioned on sentences: a linear map from an embedding to one colour for the whole image."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.models.base import Algorithm, DataFacts, Prior, Terms, Update


class Painter(Algorithm):
    """The code is the mean colour, [B, C]."""

    condition = "embeddings"

    def __init__(self, data: DataFacts) -> None:
        super().__init__()
        assert data.embedding is not None
        self.shape = data.image_shape
        self.colour = nn.Linear(data.embedding, self.shape[0])
        self.groups = {"colour": ("colour",)}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update("colour", self.loss, next(batches))

    def loss(self, batch: Batch) -> Terms:
        return {"colour": (self.colour(batch.embeddings) - self.encode(batch.x)).square().mean()}

    def validate(self, batch: Batch) -> Terms:
        return self.loss(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return x.mean((2, 3))

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return z[:, :, None, None].expand(-1, *self.shape)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        assert condition is not None
        return {"painted": lambda noise: self.colour(condition) + 0.02 * noise.normal("shade", self.shape[0])}


class Deaf(Painter):
    """The same, but its samples hear nothing of the sentence."""

    condition = None

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"grey": lambda noise: noise.uniform("shade", self.shape[0])}
