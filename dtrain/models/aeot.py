"""AE-OT: an autoencoder, then a potential that carries noise to its codes by optimal transport (paper 003)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.data.latents import latents
from dtrain.data.problems import FromCodes
from dtrain.losses.ot import Solver
from dtrain.models.base import Count, DataFacts, Dimension, Site, Stage, Terms, Update, Weight
from dtrain.models.potential import Dual, PotentialModel
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder


class AEOT(PotentialModel):
    """Enc and Dec trained on the squared error and then frozen; D on the codes of the whole training set.

    autoencoder: the folder of a run whose networks `encoder` and `decoder` take the place of the first stage.
    scale_codes: D sees codes divided by their standard deviation.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        data: DataFacts,
        *,
        latent_dim: Dimension,
        width: Dimension = 80,
        hidden: Dimension = 512,
        depth: Dimension = 5,
        slope: Weight = 0.2,
        problem_size: Dimension = 64,
        lambda_gradient: Weight = 0.1,
        shift_invariant: bool = False,
        scale_codes: bool = False,
        dual: Dual = "batch",
        autoencoder: Path | None = None,
        workers: Count = 1,
        solver: Solver = "lapjv",
    ) -> None:
        super().__init__(
            dim=latent_dim, hidden=hidden, depth=depth, slope=slope, problem_size=problem_size,
            lambda_gradient=lambda_gradient, shift_invariant=shift_invariant, dual=dual, count=data.images,
            workers=workers, solver=solver,
        )  # fmt: skip
        if data.images is not None and data.images < problem_size:
            raise ValueError(f"model.problem_size={problem_size}: the data has {data.images} training images")
        self.scale_codes, self.trained = scale_codes, autoencoder is not None
        self.encoder = ImageEncoder(data.image_shape, latent_dim, width)
        self.decoder = ImageDecoder(data.image_shape, latent_dim, width)
        self.groups = {"autoencoder": ("encoder", "decoder"), **self.groups}
        if autoencoder is not None:
            self.pretrained = {"autoencoder": autoencoder}

    def stages(self) -> tuple[Stage, ...]:
        first = Stage("autoencoder", self.autoencoder_step, trained=self.trained)
        return (first, *self.transport_stages())

    def autoencoder_step(self, batches: Iterator[Batch], update: Update) -> None:
        update("autoencoder", self.autoencoder_loss, next(batches))

    def autoencoder_loss(self, batch: Batch) -> Terms:
        """|x - Dec(Enc x)|^2 as a mean over elements."""
        return {"x": (self.reconstruct(batch.x) - batch.x).square().mean()}

    def codes(self, site: Site) -> Tensor:
        found = latents(site, self.encoder, "autoencoder")
        if self.scale_codes:
            self.scale.copy_(found.std(0).square().mean().sqrt())
        return found / self.scale.cpu()

    def draw(self, site: Site) -> FromCodes:
        return FromCodes(self.codes(site).numpy(), self.problem_size, site.seed)

    def validate(self, batch: Batch) -> Terms:
        return self.autoencoder_loss(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z)
