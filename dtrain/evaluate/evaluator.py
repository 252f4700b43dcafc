"""One evaluation: f(algorithm) -> numbers and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dtrain.config import EvaluateConfig
from dtrain.data.build import Loader
from dtrain.evaluate import manipulation, pictures
from dtrain.evaluate.heldout import held_out
from dtrain.models.base import Algorithm
from dtrain.world import World


class Interrupted(Exception):
    """All ranks agreed to stop."""


@dataclass(frozen=True)
class Evaluator:
    """What evaluations share. cache: a folder for features of the data. stop: whether all ranks agreed to stop."""

    train: Loader
    test: Loader
    world: World
    settings: EvaluateConfig
    cache: Path
    stop: Callable[[], bool] = lambda: False

    def __call__(self, algorithm: Algorithm, images: Path | None = None) -> dict[str, float]:
        """Numbers; pictures into `images` if given. Called on every rank; Interrupted once stop() agrees."""
        training = algorithm.training
        algorithm.eval()
        try:
            with torch.no_grad():
                values = held_out(algorithm, self.test, self.world, self._poll)
                if self.settings.fidelity:
                    from dtrain.evaluate import fidelity  # loads torch-fidelity

                    values |= fidelity.scores(
                        algorithm, self.train, self.test, self.world, self.settings, self.cache, self._poll
                    )
                if images is not None:
                    self._draw(algorithm, images)
        finally:
            algorithm.train(training)
        return values

    def _draw(self, algorithm: Algorithm, images: Path) -> None:
        names = self.settings.manipulate
        found = manipulation.directions(algorithm, self.train, self.world, names, self._poll) if names else {}
        pictures.draw(algorithm, self.test, self.world, self.settings, found, images, self._poll)

    def _poll(self) -> None:
        if self.stop():
            raise Interrupted
