"""What a run has cost: parameters, images, updates and hours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch

from dtrain.checkpoint import stored_keys
from dtrain.compare.runs import Row, Run
from dtrain.trainer import Trainer

# What environment.json may call a CPU: platform.processor(), or "cpu" where that says nothing.
CPUS = ("cpu", "x86_64", "amd64", "i386", "i686", "aarch64", "arm64", "arm", "ppc64le", "riscv64", "s390x")

Line = dict[str, Any]


def numbers(row: Row, trainer: Trainer) -> list[tuple[str, str, str, str, float]]:
    """What each of the row's runs has cost, in all and by parameter group, as lines of the table.

    trainer: of one of the runs.
    """
    sizes = parameters(trainer)
    found: list[tuple[str, str, str, str, float]] = []
    for run in row.runs:
        costs = {"parameters": sum(sizes.values()), **images(run, trainer), **dict([hours(run)])}
        found += [("cost", row.label, "", name, value) for name, value in costs.items()]
        found += [("group", row.label, name, "parameters", size) for name, size in sizes.items()]
        found += [("group", row.label, name, "updates", count) for name, count in updates(run, trainer).items()]
    return found


def parameters(trainer: Trainer) -> dict[str, int]:
    """The numbers that the optimizer of each parameter group moves."""
    return {name: sum(p.numel() for p in group.params) for name, group in trainer.updater.groups.items()}


def updates(run: Run, trainer: Trainer) -> dict[str, int]:
    """The optimizer steps of each parameter group, as its optimizer has counted them; SGD counts none."""
    keys = [key for key in stored_keys(run.checkpoint) if key.startswith("optim.") and key.endswith(".step")]
    steps = {key: torch.zeros(()) for key in keys}
    trainer.checkpoints.load(run.checkpoint, steps, part=True)
    counted = {}
    for name, group in trainer.updater.groups.items():
        prefixes = tuple(f"optim.{path}." for path in trainer.algorithm.groups[name])
        if group.settings.name != "sgd":
            counted[name] = max((int(v) for k, v in steps.items() if k.startswith(prefixes)), default=0)
    return counted


def images(run: Run, trainer: Trainer) -> dict[str, float]:
    """images, of several stages images/<stage>: how many a run has trained on, repeated ones again.

    rows in place of images where the stage trains on something else.
    """
    stages = {stage.name: stage for stage, _ in trainer.stages}
    name, seen = next(iter(stages)), {}
    for line in run.lines:
        if line.get("kind") == "stage":
            name = str(line.get("message")).removeprefix("stage ").partition(":")[0]
        elif line.get("kind") == "train" and isinstance(line.get("images"), int | float):
            seen[name] = float(line["images"])
    what = {n: "images" if n not in stages or stages[n].source is None else "rows" for n in seen}
    return {f"{what[n]}/{n}" if len(stages) > 1 else what[n]: count for n, count in seen.items()}


def hours(run: Run) -> tuple[str, float]:
    """core-hours or GPU-hours of all processes together, from each start to the last line of its training.

    Evaluations and saves in between are in it; the evaluations at the end, the time that a run lay still between two
    starts and steps that a restart has run again are not.
    """
    cpu = str(run.environment.get("device")).lower() in CPUS
    threads = _whole(run.environment.get("threads")) if cpu else 1
    total = 0.0
    for start, stretch in _starts(run.lines):
        size = _whole(start.get("world_size", run.environment.get("world_size")))
        total += size * threads * sum(b - a for a, b in pairwise(stretch))
    return ("core-hours" if cpu else "GPU-hours"), total / 3600


def _starts(lines: Iterable[Line]) -> Iterator[tuple[Line, list[float]]]:
    """Each start of the run's processes with the times of its own line, where it has one, and of its training's."""
    start: Line = {}
    times: list[float] = []
    for line in lines:
        if line.get("kind") == "start":
            yield start, times
            start, times = line, []
        if line.get("kind") in ("start", "train") and isinstance(line.get("time"), int | float):
            times.append(float(line["time"]))
    yield start, times


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
