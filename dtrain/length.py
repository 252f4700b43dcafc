"""How long a run is: the steps of each stage, set as steps or as epochs; and where it pauses. Without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dtrain.config import ConfigError, TrainerConfig

if TYPE_CHECKING:
    from dtrain.models.base import Stage


def check(settings: TrainerConfig, stages: Sequence[str]) -> None:
    """ConfigError unless the settings name just the stages that there are, and give each a length."""
    names, (key, length) = ", ".join(stages), settings.length
    by_stage = {key: length, "patience": settings.patience, "checkpoint.best": settings.checkpoint.best}
    for setting, value in by_stage.items():
        wrong = [name for name in value if name not in stages] if isinstance(value, dict) else []
        if wrong:
            raise ConfigError(f"trainer.{setting}.{wrong[0]}: the model has no such stage, but {names}")
    if isinstance(length, int):
        if len(stages) > 1:
            raise ConfigError(f"trainer.{key}={length}: give each stage its own: {names}")
        return
    missing = [name for name in stages if name not in length]
    if missing or not any(length.values()):
        what = key.removeprefix("max_")
        raise ConfigError(f"trainer.{key}={length}: set {what} for {', '.join(missing) or names}")


def lengths(settings: TrainerConfig, stages: Iterable[Stage], images: int) -> dict[str, int]:
    """The steps of every stage, on a training split of so many images, of settings that `check` has passed."""
    key, length = settings.length
    found = {}
    for stage in stages:
        count = length if isinstance(length, int) else length[stage.name]
        unit = 1 if key == "max_steps" else settings.epoch(images, stage.batches_per_step)
        found[stage.name] = count * unit
    return found


def pause_step(share: float | None, steps: int) -> float:
    """The step, of so many, at which run.pause_at pauses a run: at least 1; infinity for None."""
    return math.inf if share is None else max(1, round(share * steps))
