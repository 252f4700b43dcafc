"""What a run has cost: parameters, images, updates and hours."""

from __future__ import annotations

import torch

from dtrain.checkpoint import stored_keys
from dtrain.compare.runs import Row, Run
from dtrain.hours import hours
from dtrain.trainer import Trainer


def numbers(row: Row, trainer: Trainer) -> list[tuple[str, str, str, str, float]]:
    """What each of the row's runs has cost, in all and by parameter group, as lines of the table.

    trainer: of one of the runs.
    """
    sizes = parameters(trainer)
    found: list[tuple[str, str, str, str, float]] = []
    for run in row.runs:
        spent = dict([hours(run.lines, run.environment)])
        costs = {"parameters": sum(sizes.values()), **images(run, trainer), **spent}
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
