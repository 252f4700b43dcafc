"""WAE-MMD: an autoencoder whose codes match a Gaussian prior (Tolstikhin et al., 2018; the baseline of 000)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.losses.gaussian import squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, DataFacts, Dimension, Prior, Scale, Terms, Update, Weight
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder
from dtrain.noise import Noise

RECONSTRUCTION = 0.05  # of the squared error's sum over the elements


class WAE(Algorithm):
    """SWAE's E1 and G1 in one stage, without critics: the prior N(0, sigma^2 I) is on the code itself."""

    value_range = (-1.0, 1.0)
    batch_coupled = True  # the MMD of a batch is not a mean over its samples

    def __init__(
        self,
        data: DataFacts,
        *,
        code_dim: Dimension,
        width: Dimension = 64,
        lambda_match: Weight,
        prior_scale: Scale = 1.0,
    ) -> None:
        super().__init__()
        self.code_dim, self.lambda_match, self.prior_scale = code_dim, lambda_match, prior_scale
        self.encoder = ImageEncoder(data.image_shape, code_dim, width)
        self.decoder = ImageDecoder(data.image_shape, code_dim, width)
        self.groups = {"autoencoder": ("encoder", "decoder")}

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        update("autoencoder", self.objective, next(batches))

    def objective(self, batch: Batch) -> Terms:
        """0.05 |x - G(E x)|^2 + lambda MMD(E x, z)."""
        z = self.encoder(batch.x)
        mmd = imq_mmd(self.gather(z), self.gather(self.sample_codes(batch.noise)), self.prior_scale)
        return {
            "x": RECONSTRUCTION * squared_cost(batch.x, self.decoder(z)),
            "mmd": self.lambda_match * mmd,
        }

    def validate(self, batch: Batch) -> Terms:
        return self.objective(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z)

    def sample_codes(self, noise: Noise) -> Tensor:
        """z from the prior."""
        return self.prior_scale * noise.normal("prior", self.code_dim)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"normal": self.sample_codes}
