"""A toy of two stages: an autoencoder, then a generator of its codes, trained on them in place of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.data.latents import latents
from dtrain.data.order import Order, positions
from dtrain.models.base import Algorithm, DataFacts, Prior, Site, Stage, Terms, Update
from dtrain.noise import Noise


class Codes:
    """Codes with their noise, in the order that every loader follows."""

    def __init__(self, codes: Tensor, seed: int, batch_size: int) -> None:
        self.codes, self.seed, self.batch_size = codes, seed, batch_size

    def batches(self, start: int) -> Iterator[tuple[Tensor, Noise]]:
        order = Order(len(self.codes), self.seed)
        while True:
            at = positions(start, self.batch_size)
            yield self.codes[torch.from_numpy(order.indices(at))], Noise(self.seed, torch.from_numpy(at))
            start += self.batch_size

    def close(self) -> None:
        """Nothing to free."""


class TwoStage(Algorithm):
    """encodings: a file that gets a line for every batch that is encoded for the second stage."""

    def __init__(
        self, data: DataFacts, *, encodings: Path | None = None, pretrained: Path | None = None, width: int = 8
    ) -> None:
        super().__init__()
        pixels = math.prod(data.image_shape)
        self.shape, self.encodings = data.image_shape, encodings
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width, bias=False), nn.BatchNorm1d(width), nn.Linear(width, 2)
        )
        self.decoder = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, pixels))
        self.generator = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.groups = {"autoencoder": ("encoder", "decoder"), "generator": ("generator",)}
        if pretrained:
            self.pretrained = {"autoencoder": pretrained}

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("autoencoder", self.autoencoder_step),
            Stage("generator", self.generator_step, source=self.encode_all),
        )

    def autoencoder_step(self, batches: Iterator[Batch], update: Update) -> None:
        update("autoencoder", self.autoencoder_loss, next(batches))

    def generator_step(self, batches: Iterator[Any], update: Update) -> None:
        update("generator", self.generator_loss, *next(batches))

    def encode_all(self, site: Site) -> Codes:
        def encode(x: Tensor) -> Tensor:
            if self.encodings is not None:
                with self.encodings.open("a") as f:
                    print(len(x), file=f)
            return self.encode(x)

        return Codes(latents(site, encode, "autoencoder"), site.seed, site.batch_size)

    def autoencoder_loss(self, batch: Batch) -> Terms:
        return {"x": (self.reconstruct(batch.x) - batch.x).square().mean()}

    def generator_loss(self, codes: Tensor, noise: Noise) -> Terms:
        return {"code": (self.generator(noise.normal("z", 2)) - codes).square().mean()}

    def validate(self, batch: Batch) -> Terms:
        return self.autoencoder_loss(batch)

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return self.decoder(z).sigmoid().view(-1, *self.shape)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"generator": lambda noise: self.generator(noise.normal("z", 2))}
