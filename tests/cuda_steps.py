"""python -m tests.cuda_steps WAY|faults …: whole training steps of every model on a fake GPU, in its own process.

Prints {way: {case: [what waits for the host, …]}} as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import Config
from dtrain.data.batch import Batch, captions, flipped, to_float
from dtrain.models.base import Algorithm, DataFacts, Stage
from dtrain.models.stackedwae import StackedWAE
from dtrain.noise import Noise
from dtrain.update import Updater
from dtrain.world import World
from tests.fake_cuda import ROOT, HostSyncs, fake_cuda

ROWS, CLASSES, CAPTIONS, EMBEDDING, IMAGES = 8, 10, 3, 384, 1000
EVERY = sorted(f.stem for f in (ROOT / "configs" / "model").glob("*.yaml"))
# One of each way to train: MMD, two critics, a stage of transport, conditions, pseudo-inputs.
KINDS = ["stackedwae", "swae", "aeot_semidiscrete", "learned_prior_aae_supervised", "vampprior"]
CLIPPED = ("optim.default.clip_norm=1", "optim.default.ema=0.99")
WAYS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "fp32": (EVERY, ()),
    "bf16": (EVERY, ("trainer.precision=bf16",)),
    "fp16_clip_ema": (KINDS, ("trainer.precision=fp16", *CLIPPED)),
    "skip_clip_ema": (KINDS, ("trainer.on_nonfinite=skip", *CLIPPED)),
}


def config_of(model: str, *overrides: str) -> Config:
    """The model's own configuration, on images of the size that its name says."""
    data = model.rpartition("_")[2]
    known = (ROOT / "configs" / "data" / f"{data}.yaml").exists()
    return configs.read(configs.compose([f"model={model}", f"data={data if known else 'mnist'}", *overrides]))


class Rig:
    """A model on the device, its updater, and what its stages read. Built where the device is the default one."""

    def __init__(self, config: Config, device: torch.device, rows: int = ROWS) -> None:
        self.config, self.device, self.rows = config, device, rows
        shape = config.data.image_shape
        facts = DataFacts(shape, CLASSES, embedding=EMBEDDING, images=IMAGES)
        with device:  # only here: what a step makes without naming its device must show
            self.algorithm: Algorithm = build_algorithm(config, facts)
            self.pixels = torch.empty(rows, shape[1], shape[2], shape[0], dtype=torch.uint8)
            self.embeddings = torch.empty(rows, CAPTIONS, EMBEDDING)
            self.labels = torch.zeros(rows, dtype=torch.int64)
            if hasattr(self.algorithm, "dim"):  # the codes that a potential is trained towards
                self.algorithm.targets = torch.empty(IMAGES, self.algorithm.dim)
        self.updater = Updater(self.algorithm, config.optim, config.trainer, World(device=device))
        self.algorithm.train()

    def batch(self) -> Batch:
        """A loader's last hop: rows gathered on the device to floats, flipped, each with one of its captions."""
        noise = Noise.of(self.rows, device=self.device)
        x = to_float(self.pixels, self.algorithm.value_range, flipped(noise))
        embeddings = self.embeddings[noise.position, captions(noise, CAPTIONS)]
        return Batch(x, noise, self.labels, embeddings=embeddings, index=noise.position)

    def items(self, stage: Stage) -> Iterator[Any]:
        """What the stage's steps read."""
        if stage.source is None:
            return (self.batch() for _ in repeat(None))
        noise = Noise.of(self.rows, device=self.device)
        x = noise.normal("transport", self.algorithm.dim)  # type: ignore[arg-type]
        solved = (x, x.sum(1), x, noise.position)  # noise, potential, target, problem
        return repeat(solved if stage.name == "potential" and self.algorithm.dual == "batch" else x)

    def step(self, stage: Stage, items: Iterator[Any], measure: bool = False) -> None:
        """One step of a stage, as the trainer takes it."""
        self.updater.begin(1, self.rows, 10**6, measure=measure)
        stage.step(items, self.updater)


def violations(config: Config, device: torch.device, steps: int = 1) -> list[str]:
    """Of the first steps of every stage, the first one measured, which does all that any step does."""
    rig, syncs = Rig(config, device), HostSyncs()
    for stage in rig.algorithm.stages():
        for number in range(steps):
            with syncs.watched():
                rig.step(stage, rig.items(stage), measure=number == 0)
    return sorted(set(syncs.found))


def _item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def _branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cpu tensor": lambda x: x + torch.ones(x.shape[-1]),
    "item": _item,
    "branch": _branch,
    "mask": lambda x: x[x > 0],
    "copy": lambda x: x + torch.ones(x.shape[-1]).to(x.device),
}


def fault(name: str, device: torch.device) -> list[str]:
    """What is found of a StackedWAE whose objective has the fault."""
    honest = StackedWAE.objective

    def objective(self: StackedWAE, batch: Batch) -> Any:
        FAULTS[name](batch.x)
        return honest(self, batch)

    StackedWAE.objective = objective  # type: ignore[method-assign]
    try:
        return violations(config_of("stackedwae", "model.levels=[{latent: 2, hidden: 8}]"), device)
    finally:
        StackedWAE.objective = honest  # type: ignore[method-assign]


def main(ways: list[str]) -> None:
    found: dict[str, dict[str, list[str]]] = {}
    with fake_cuda() as device:
        for way in ways:
            if way == "faults":
                found[way] = {name: fault(name, device) for name in FAULTS}
            else:
                models, overrides = WAYS[way]
                steps = 1 if models is EVERY else 2
                found[way] = {model: violations(config_of(model, *overrides), device, steps) for model in models}
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
