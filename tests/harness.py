"""Trains small algorithms through the real loader, updater and process group, in float64 where parity is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import Config, EvaluateConfig
from dtrain.data.batch import Batch
from dtrain.data.order import Order, positions
from dtrain.distributed import distribute
from dtrain.evaluate.evaluation import Evaluation
from dtrain.length import lengths
from dtrain.models.base import Algorithm, DataFacts, Site, Stage
from dtrain.noise import Noise
from dtrain.stream import rows
from dtrain.tensors import model_state
from dtrain.update import Updater
from dtrain.world import World, start

SHAPE = (1, 6, 6)
LEVELS = "model.levels=[{latent:6,hidden:32},{latent:4,hidden:16},{latent:2,hidden:8}]"
STACKED = (LEVELS, f"data.image_shape={list(SHAPE)}")
ON_24 = "data.image_shape=[1,24,24]"
SWAE = (
    "model=swae", ON_24, "model.code_dim=3", "model.latent_dim=3", "model.width=4", "model.critic_width=4",
    "model.hidden=8",
)  # fmt: skip
AE = (ON_24, "model.code_dim=3", "model.width=4")
AEOT = ("model=aeot", ON_24, "model.latent_dim=3", "model.width=4", "model.hidden=16", "model.workers=0")
EIGHT = ("model=eight_gaussians", "model.hidden=16", "model.workers=0")
VAE = (ON_24, "model.latent_dim=3", "model.width=4")
PRIOR = (ON_24, "model.width=2", "model.code_dim=13")
MODELS: dict[str, tuple[str, ...]] = {
    "stackedwae": STACKED,
    "adversary": STACKED,
    "swae": SWAE,
    "ae": ("model=ae", *AE),
    "wae_mmd": ("model=wae_mmd", *AE),
    "wae_gan": ("model=wae_gan", *AE, "model.critic_hidden=8"),
    "wae_hierarchical": ("model=wae_hierarchical", *STACKED),
    "vae": ("model=vae", *VAE),
    "vampprior": ("model=vampprior", *VAE, "model.pseudo_inputs=6"),
    "ali": ("model=ali", *VAE),
    "alice": ("model=alice", *VAE),
    "aeot": AEOT,
    "aeot_semidiscrete": ("model=aeot_semidiscrete", *AEOT[1:]),
    "eight_gaussians": EIGHT,
    "aae": ("model=aae", *PRIOR),
    "learned_prior_aae": ("model=learned_prior_aae", *PRIOR),
    "learned_prior_aae_supervised": ("model=learned_prior_aae_supervised", *PRIOR),
    "learned_prior_aae_unsupervised": ("model=learned_prior_aae_unsupervised", *PRIOR),
    "learned_prior_aae_text": ("model=learned_prior_aae_text", *PRIOR, "model.noise_dim=3", "model.sentence_dim=5"),
}


COUNT, CLASSES, EMBEDDING = 96, 10, 16


@functools.cache
def images(shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).random((COUNT, *shape))


def make_config(model: str, *overrides: str) -> Config:
    """A small run of a model; its batch is 16 images of all processes together."""
    small = MODELS.get(model, (f"model={model}",))
    cfg = configs.compose(["trainer.batch_size=16", *small, *overrides])
    if isinstance(cfg.trainer.max_steps, int) and not any(o.startswith("trainer.max_steps=") for o in overrides):
        cfg.trainer.max_steps = 40
    if model == "adversary":
        cfg.model = {"_target_": "tests.adversary.Adversary"}
    return configs.read(cfg)


class Session:
    """An algorithm on this process's part of a world, with its updater and its endless batches."""

    def __init__(self, config: Config, world: World, double: bool = True, images: int = 0) -> None:
        trainer = config.trainer
        self.config, self.world, self.double = config, world, double
        facts = DataFacts(config.data.image_shape, CLASSES, embedding=EMBEDDING, images=COUNT)
        self.algorithm: Algorithm = build_algorithm(config, facts)
        if double:
            self.algorithm.double()
        distribute(
            self.algorithm, world, strategy=trainer.strategy, shard_size=trainer.shard_size,
            sync_batchnorm=trainer.sync_batchnorm,
        )  # fmt: skip
        self.updater = Updater(self.algorithm, config.optim, trainer, world)
        self.images = images
        self.stage = self.algorithm.stages()[0]
        self.stream: Iterator[Any] = self.batches() if self.stage.source is None else self.sourced(self.stage)
        self.algorithm.train()

    def batches(self) -> Iterator[Batch]:
        """Random images in memory, in the order that every loader follows."""
        order, start, rows = Order(COUNT, self.config.seed), self.images, images(self.config.data.image_shape)
        while True:
            at = positions(start, self.config.trainer.batch_size, self.world.rank, self.world.size)
            x = torch.from_numpy(rows[order.indices(at)])
            yield self.batch(x, Noise(self.config.seed, torch.from_numpy(at)))
            start += self.config.trainer.batch_size

    def sourced(self, stage: Stage) -> Iterator[Any]:
        """This rank's rows of what a stage reads in place of images."""
        assert stage.source is not None
        source = stage.source(site_of(self.world, batch_size=self.config.trainer.batch_size, seed=self.config.seed))
        for item in source.batches(self.images):
            yield self.precise(rows(item, self.world.rank, self.world.size))

    def precise(self, item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(map(self.precise, item))
        return item.to(self.world.device, torch.float64 if self.double and item.is_floating_point() else item.dtype)

    def batch(self, x: Tensor, noise: Noise) -> Batch:
        """On the session's device, of its precision, with labels and embeddings."""
        device, dtype = self.world.device, torch.float64 if self.double else torch.float32
        noise = replace(noise, dtype=dtype, position=noise.position.to(device))
        labels, embeddings = noise.position % CLASSES, noise.normal("embedding", EMBEDDING)
        return Batch(x.to(device, dtype), noise, labels, embeddings=embeddings)

    def steps(self, count: int) -> dict[str, float]:
        """Trains; returns the metrics of the last step."""
        for _ in range(count):
            self.updater.read(self.world)
            batch = self.config.trainer.batch_size
            total = sum(lengths(self.config.trainer, self.algorithm.stages(), COUNT).values()) * batch
            self.updater.begin(self.images // batch, self.images, total)
            self.stage.step(self.stream, self.updater)
            self.images += self.config.trainer.batch_size
        return self.updater.read(self.world).values

    def held_out(self) -> dict[str, float]:
        """heldout/<term> of images that training never sees, and buffer/<name>, the norm of a running statistic.

        Training losses see neither: batch norm trains by the batch's own statistics.
        """
        rows = np.random.default_rng(1).random((16, *self.config.data.image_shape))
        x = torch.from_numpy(rows)
        batch = self.batch(x, Noise.of(16, seed=1))
        self.algorithm.eval()
        with torch.no_grad():
            values = {f"heldout/{k}": float(v) for k, v in self.algorithm.validate(batch).items()}
        self.algorithm.train()
        return values | {f"buffer/{k}": float(b.double().norm()) for k, b in self.algorithm.named_buffers()}

    def weights(self) -> dict[str, Tensor]:
        return {k: whole(v).clone() for k, v in model_state(self.algorithm).items()}


class Watched:
    """An updater that tells `seen` the groups, the function, and the tensors that each of its updates moved.

    A value must move nothing.
    """

    def __init__(self, algorithm: Algorithm, updater: Updater, seen: Callable[[Any, Any, set[str]], None]) -> None:
        self.algorithm, self.updater, self.seen = algorithm, updater, seen

    def __call__(self, groups: Any, loss_fn: Any, *batch: Any) -> None:
        before = self._state()
        self.updater(groups, loss_fn, *batch)
        self.seen(groups, loss_fn, self._moved(before))

    def value(self, fn: Any, *batch: Any) -> Any:
        before = self._state()
        found = self.updater.value(fn, *batch)
        assert not self._moved(before)
        return found

    def watch(self, name: str, fn: Any, *batch: Any) -> None:
        before = self._state()
        self.updater.watch(name, fn, *batch)
        assert not self._moved(before)

    def _state(self) -> dict[str, Tensor]:
        return {k.removeprefix("model."): whole(v).clone() for k, v in model_state(self.algorithm).items()}

    def _moved(self, before: dict[str, Tensor]) -> set[str]:
        return {k for k, v in self._state().items() if not torch.equal(v, before[k])}


def evaluation_of(
    algorithm: Algorithm, train: Any, heldout: Any, world: World, settings: EvaluateConfig, cache: Path = Path()
) -> Evaluation:
    """An evaluation outside a run."""
    return Evaluation(algorithm, site_of(world, cache, train), heldout, settings, cache)


def site_of(world: World, folder: Path = Path(), train: Any = None, batch_size: int = 8, seed: int = 0) -> Site:
    """A site outside a run."""
    return Site(folder, train, seed, batch_size, world, lambda: None, lambda *groups: "")


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


Trained = tuple[dict[str, Tensor], dict[str, float]]


def train(config: Config, steps: int = 20, double: bool = True) -> Trained:
    """A whole short run on this rank's world: final weights and the last step's metrics."""
    return train_each([config], steps, double)[0]


def train_each(configs: list[Config], steps: int, double: bool = True) -> list[Trained]:
    """One after the other on the same world."""
    world, trained = start("cpu", timeout=60), []
    for config in configs:
        session = Session(config, world, double)
        metrics = session.steps(steps)
        trained.append((session.weights(), metrics))
    return trained


def noise(rows: int) -> Noise:
    return Noise.of(rows, seed=3)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest absolute difference over all tensors; the keys must agree."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)
