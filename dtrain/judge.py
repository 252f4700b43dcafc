"""The judge of a stage's evaluations: is this one better than all before it, and is it time to end?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dtrain.config import ConfigError, HeldOut
from dtrain.metrics import better


class Evaluator(Protocol):
    """What the trainer asks of an evaluation, on every rank."""

    def rehearse(self) -> set[str]:
        """The metrics that there will be, once one batch could be evaluated; ConfigError if it could not."""

    def measure(self, split: HeldOut) -> dict[str, float]:
        """Numbers of a held-out split by metric, the same on every rank. Interrupted if all ranks agree to stop."""

    def draw(self, split: HeldOut) -> list[Path]:
        """Pictures, with those of a held-out split, into the run's images/; the files, on rank 0."""


@dataclass
class Judge:
    """metric: what trainer.checkpoint.best names; None judges nothing. patience: evaluations without a better one.

    best: the metric's best value so far. worse: evaluations since then. due: a stop came before one had ended.
    """

    metric: str | None = None
    patience: int | None = None
    best: float | None = None
    worse: int = 0
    due: bool = False

    def judge(self, values: dict[str, float]) -> float | None:
        """The metric's value, if it is better than ever before. NaN is not."""
        if self.metric is None:
            return None
        value = values[self.metric]
        if not better(self.metric, value, self.best):
            self.worse += 1
            return None
        self.best, self.worse = value, 0
        return value

    @property
    def out_of_patience(self) -> bool:
        return self.patience is not None and self.worse >= self.patience

    def state(self) -> dict[str, Any]:
        """For the checkpoint's JSON."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse; another metric starts anew."""
        self.due = state["due"]
        if state["metric"] == self.metric:
            self.best, self.worse = state["best"], state["worse"]


def check_judged(metrics: Iterable[str | None], known: set[str]) -> None:
    """ConfigError unless an evaluation gives the metrics that trainer.checkpoint.best names, None for none."""
    for metric in metrics:
        if metric and metric not in known:
            raise ConfigError(f"trainer.checkpoint.best={metric}: the metrics are {', '.join(sorted(known))}")
