"""What every measure and every picture is a function of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dtrain.config import EvaluateConfig
from dtrain.data.build import Loader
from dtrain.evaluate import mixture
from dtrain.models.base import Algorithm, Prior, Site
from dtrain.noise import Noise
from dtrain.world import gather

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """An algorithm in evaluation mode at its site, and the held-out images. cache: a folder for features of the data.

    Every rank has one, and calls the same functions of it in the same order.
    kept: what the weights decide and not the held-out images, by name; the evaluations of both splits share it.
    """

    algorithm: Algorithm
    site: Site
    heldout: Loader
    settings: EvaluateConfig
    cache: Path
    kept: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Drops what was kept of other weights than those at hand."""
        weights = self.site.digest(*self.algorithm.groups)
        if self.kept.get("weights") != weights:
            self.kept.clear()
            self.kept["weights"] = weights

    def keep(self, name: str, compute: Callable[[], T]) -> T:
        """compute(), once for the weights at hand."""
        if name not in self.kept:
            self.kept[name] = compute()
        found: T = self.kept[name]
        return found

    def noise(self, count: int) -> Noise:
        """Of samples that do not depend on the data."""
        return Noise.of(count, self.settings.seed, device=self.site.world.device)

    def condition(self, position: Tensor) -> Tensor | None:
        """What the samples at these positions are conditioned on: the held-out split's own, in its order.

        Of several captions the first.
        """
        if self.algorithm.condition is None:
            return None
        every = torch.from_numpy(self.heldout.split.arrays[self.algorithm.condition])
        if every.ndim == 3:
            every = every[:, 0]
        return every[position.cpu() % len(every)].to(position.device)

    def priors(self, noise: Noise) -> Mapping[str, Prior]:
        """The algorithm's, under these samples' conditions; with evaluate.sampler=gmm also `gmm`, which has none."""
        priors = self.algorithm.priors(self.condition(noise.position))
        if self.settings.sampler == "prior":
            return priors
        fitted = self.keep("mixture", lambda: mixture.fitted(self.algorithm, self.site, self.settings.seed))
        return {**priors, "gmm": fitted.draw}

    def unit(self, x: Tensor) -> Tensor:
        """Images of the algorithm's range in [0, 1]."""
        low, high = self.algorithm.value_range
        return (x - low) / (high - low)

    def to_bytes(self, x: Tensor) -> Tensor:
        """Images in the algorithm's range to uint8, as they would be saved."""
        return (self.unit(x) * 255).round().clamp(0, 255).to(torch.uint8)

    @cached_property
    def first(self) -> tuple[Tensor, Tensor | None]:
        """The first held-out images in the order of `once`, the same rows on every rank, and their labels."""
        count = max(self.settings.rows, self.settings.points)
        xs: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in self.heldout.once():
            order = gather(batch.noise.position).argsort()
            xs.append(gather(batch.x)[order])
            if batch.labels is not None:
                labels.append(gather(batch.labels)[order])
            if sum(map(len, xs)) >= count:
                break
        return torch.cat(xs)[:count], torch.cat(labels)[:count] if labels else None
