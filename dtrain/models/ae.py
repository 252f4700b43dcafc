"""A plain autoencoder: nothing but the squared error (a baseline of 000 and 002)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import squared_cost
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Terms, Update
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder


class AE(Algorithm):
    """SWAE's E1 and G1. It has no prior: evaluate.sampler=gmm fits one to its codes."""

    value_range = (-1.0, 1.0)

    def __init__(self, data: DataFacts, *, code_dim: Dimension, width: Dimension = 64) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.encoder = ImageEncoder(data.image_shape, code_dim, width)
        self.decoder = ImageDecoder(data.image_shape, code_dim, width)
        self.groups = {"autoencoder": ("encoder", "decoder")}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update("autoencoder", self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """|x - G(E x)|^2, summed over pixels, mean over the batch."""
        return {"x": squared_cost(batch.x, self.reconstruct(batch.x))}

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {}
