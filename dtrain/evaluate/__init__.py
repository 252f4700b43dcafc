"""Evaluation: f(algorithm, loader) -> numbers and pictures, at the end of a run or at any time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from dtrain.config import ConfigError, EvaluateConfig
from dtrain.data.build import Loader
from dtrain.distributed import World
from dtrain.evaluate import pictures
from dtrain.evaluate.heldout import held_out
from dtrain.models.base import Algorithm


def check(settings: EvaluateConfig) -> None:
    """ConfigError for what is not installed, before anything is trained."""
    if settings.projection == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("evaluate.projection=umap needs umap-learn: pip install 'dtrain[umap]'; or set pca")


class Interrupted(Exception):
    """All ranks agreed to stop."""


def evaluate(
    algorithm: Algorithm,
    test: Loader,
    world: World,
    settings: EvaluateConfig,
    images: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Held-out numbers; pictures into `images` if given. Called on every rank; Interrupted once stop() agrees."""

    def poll() -> None:
        if stop():
            raise Interrupted

    training = algorithm.training
    algorithm.eval()
    try:
        with torch.no_grad():
            values = held_out(algorithm, test, world, poll)
            if images is not None:
                pictures.draw(algorithm, test, world, settings, images, poll)
    finally:
        algorithm.train(training)
    return values
