"""The same WAE-MMD, layer for layer, under three trainers with their defaults: what benchmarks/peers.py starts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data.batch import Batch, to_float
from dtrain.losses.gaussian import squared_cost
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import DataFacts, Dimension, Scale, Update, Weight
from dtrain.models.wae import RECONSTRUCTION, WAEMMD, Distribution
from dtrain.nets.dcgan import ImageDecoder, ImageEncoder
from dtrain.nets.mlp import MLP

Kind = Literal["conv", "mlp"]
SHAPE, CODE, BATCH, LR, MATCH = (1, 28, 28), 8, 128, 1e-3, 10.0
WIDTHS = {"conv": 64, "mlp": 256}


def networks(kind: Kind) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder: [B, 1, 28, 28] -> [B, 8] -> [B, 1, 28, 28] in [-1, 1]."""
    width = WIDTHS[kind]
    if kind == "conv":
        return ImageEncoder(SHAPE, CODE, width), ImageDecoder(SHAPE, CODE, width)
    pixels = SHAPE[1] * SHAPE[2]
    decoder = nn.Sequential(MLP(CODE, width, pixels), nn.Unflatten(1, SHAPE), nn.Tanh())
    return MLP(pixels, width, CODE), decoder


def of_torch(kind: Kind) -> tuple[nn.Module, nn.Module]:
    """The same, the decoder's last layer torch's: as users of the other two would write them."""
    encoder, decoder = networks(kind)
    if isinstance(decoder, ImageDecoder):
        decoder.body[-1] = nn.ConvTranspose2d(WIDTHS["conv"], SHAPE[0], 4, 2, 1)
    return encoder, decoder


class Clock:
    """Notes, of the steps that PEER_STEPS names, when each was done: unix time, and CPU seconds of this process."""

    def __init__(self, *nets: nn.Module) -> None:
        self.marks = [int(step) for step in os.environ["PEER_STEPS"].split()]
        self.count, self.times = 0, dict[int, tuple[float, float]]()
        self.parameters = sum(p.numel() for net in nets for p in net.parameters())

    def tick(self) -> None:
        """A step is done. After the last one the times are written to PEER_TIMES."""
        self.count += 1
        if self.count in self.marks:
            self.times[self.count] = time.time(), time.process_time()
        if self.count == self.marks[-1]:
            found = {"parameters": self.parameters, "times": [self.times[mark] for mark in self.marks]}
            Path(os.environ["PEER_TIMES"]).write_text(json.dumps(found))


class Timed(WAEMMD):
    """dtrain's own, with one of the two pairs of networks."""

    def __init__(
        self,
        data: DataFacts,
        *,
        code_dim: Dimension,
        width: Dimension,
        lambda_match: Weight,
        prior: Distribution,
        prior_scale: Scale,
        kind: Kind,
    ) -> None:
        super().__init__(
            data, code_dim=code_dim, width=width, lambda_match=lambda_match, prior=prior, prior_scale=prior_scale
        )
        self.encoder, self.decoder = networks(kind)
        self.clock = Clock(self.encoder, self.decoder)

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        super().step(batches, update)
        self.clock.tick()


def images(folder: Path) -> Tensor:
    """The training images of the shards, float32 in [-1, 1]."""
    return to_float(torch.from_numpy(np.load(folder / "shards" / "train" / "images.npy")), (-1.0, 1.0))


def pythae(kind: Kind, folder: Path, steps: int) -> None:
    from pythae.models import WAE_MMD, WAE_MMD_Config
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(embedding=self.net(x))

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z))

    class Ticks(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
            clock.tick()

    encoder, decoder = of_torch(kind)
    clock = Clock(encoder, decoder)
    settings = WAE_MMD_Config(
        input_dim=SHAPE, latent_dim=CODE, kernel_choice="imq", reg_weight=MATCH / RECONSTRUCTION
    )
    x = images(folder)
    trainer = BaseTrainerConfig(
        output_dir=str(folder / "pythae"), num_epochs=steps * BATCH // len(x), learning_rate=LR,
        per_device_train_batch_size=BATCH, no_cuda=True,
    )  # fmt: skip
    pipeline = TrainingPipeline(WAE_MMD(settings, Encoder(encoder), Decoder(decoder)), trainer)
    pipeline(train_data=x, callbacks=[Ticks()])


def lightning(kind: Kind, folder: Path, steps: int) -> None:
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = of_torch(kind)
            self.clock = Clock(self.encoder, self.decoder)

        def training_step(self, batch: tuple[Tensor], index: int) -> Tensor:
            (x,) = batch
            z = self.encoder(x)
            error = RECONSTRUCTION * squared_cost(x, self.decoder(z))
            loss = error + MATCH * imq_mmd(z, torch.randn_like(z))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), LR)

        def on_train_batch_end(self, *args: Any) -> None:
            self.clock.tick()

    loader = DataLoader(TensorDataset(images(folder)), BATCH, shuffle=True)
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=str(folder / "lightning"))
    trainer.fit(Module(), loader)


if __name__ == "__main__":
    side, network, place, length = sys.argv[1:]
    {"pythae": pythae, "lightning": lightning}[side](network, Path(place), int(length))  # type: ignore[arg-type]
