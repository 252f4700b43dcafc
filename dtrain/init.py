"""Weights of another run to start from: of which checkpoint, for which groups, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.checkpoint import COMMITTED, Checkpointer, CheckpointError, folder_of
from dtrain.config import Config, ConfigError
from dtrain.files import read_json, sha256
from dtrain.models.base import Algorithm
from dtrain.tensors import model_state
from dtrain.update import Updater
from dtrain.world import World


@dataclass(frozen=True)
class Start:
    """Groups that begin with the weights in another run's checkpoint. digest: of its seal, which names all files."""

    checkpoint: Path
    groups: tuple[str, ...]
    digest: str

    def __str__(self) -> str:
        return f"the weights of {', '.join(self.groups)} are those of {self.checkpoint}"

    def record(self) -> dict[str, Any]:
        """For environment.json."""
        return {"checkpoint": str(self.checkpoint), "groups": list(self.groups), "sha256": self.digest}

    def load(self, algorithm: Algorithm, updater: Updater, checkpoints: Checkpointer) -> None:
        """Reads the weights, averaged ones where there are some; the groups' own averages begin there too."""
        checkpoints.load_result(self.checkpoint, model_state(algorithm, self.groups))
        for group in self.groups:
            updater.groups[group].restart_average()


Starts = Callable[[], list[Start]]


def starts(config: Config, algorithm: Algorithm, world: World) -> list[Start]:
    """What a new run begins with: Algorithm.pretrained and init.from. Called on every rank.

    ConfigError, the same everywhere, where a run is missing, a group unknown, or a tensor of another shape.
    """
    found = [
        _start(f"group {group} cannot start from {path}", path, [group], config, algorithm, world)
        for group, path in algorithm.pretrained.items()
    ]
    return found + asked_for(config, algorithm, world)


def asked_for(config: Config, algorithm: Algorithm, world: World) -> list[Start]:
    """The one by init.from, if it is set."""
    path, groups = config.init.run, config.init.groups
    if path is None:
        if groups:
            raise ConfigError(f"init.groups={groups}: set init.from, the run that they start from")
        return []
    for group in groups:
        if group not in algorithm.groups:
            known = ", ".join(algorithm.groups)
            raise ConfigError(f"init.groups={groups}: this model has no group {group}, but {known}")
        if group in algorithm.pretrained:
            raise ConfigError(f"init.groups={groups}: {group} starts from {algorithm.pretrained[group]} already")
    return [_start(f"init.from={path}", path, groups, config, algorithm, world)]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """What a run has noted of its starts; [] of one that began with the weights of its seed."""
    noted = read_json(folder / "environment.json").get("init")
    entries = [e for e in noted if isinstance(e, dict)] if isinstance(noted, list) else []
    kinds = {"checkpoint": str, "groups": list, "sha256": str}
    return [e for e in entries if all(isinstance(e.get(k), kind) for k, kind in kinds.items())]


def check_unchanged(config: Config, algorithm: Algorithm, folder: Path) -> None:
    """ConfigError where a run that is to go on began with other weights than the same checkpoint now holds.

    A source that is gone, or has moved on since, is not needed any more.
    """
    for entry in recorded(folder):
        group = next(iter(entry["groups"]), None)
        source = algorithm.pretrained.get(str(group), config.init.run)
        seal = folder_of(source) / "checkpoints" / Path(entry["checkpoint"]).name / COMMITTED if source else None
        if seal and seal.is_file() and sha256(seal) != entry["sha256"]:
            raise ConfigError(
                f"{folder} began with other weights than {seal.parent} now holds; choose run.name or run.dir"
            )


def _start(what: str, path: Path, groups: Sequence[str], config: Config, algorithm: Algorithm, world: World) -> Start:
    """groups: [] for all that fit, but for those that start from elsewhere."""
    folder = folder_of(path)
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(f"{what}: that is no run folder with checkpoints, nor a checkpoint in one")
    checkpoints = Checkpointer(folder / "checkpoints", config.trainer.checkpoint, world, print)
    found = checkpoints.result() if path == folder else checkpoints.verified(path)
    if found is None:
        raise ConfigError(
            f"{what}: it has no checkpoint that verifies" if path == folder else f"{what}: it is damaged"
        )
    from dtrain.reader import Reader  # loads DCP, which a run begins without

    try:
        known = Reader(found[0]).read_metadata().state_dict_metadata
    except CheckpointError as e:
        raise ConfigError(f"{what}: {e}") from e
    wrong = {g: _difference(algorithm, g, known) for g in groups or set(algorithm.groups) - set(algorithm.pretrained)}
    fitting = tuple(g for g in algorithm.groups if g in wrong and wrong[g] is None)
    if not fitting or (groups and len(fitting) < len(wrong)):
        first = next(g for g in algorithm.groups if wrong.get(g))
        raise ConfigError(f"{what}: group {first} does not fit: {wrong[first]}")
    return Start(found[0], fitting, sha256(found[0] / COMMITTED))


def _difference(algorithm: Algorithm, group: str, known: Mapping[str, Any]) -> str | None:
    """The first tensor of a group that a checkpoint does not have in this shape, and what it has."""
    for name, tensor in model_state(algorithm, [group]).items():
        if name not in known:
            return f"there is no {name.removeprefix('model.')} there"
        if known[name].size != tensor.shape:
            return f"{name.removeprefix('model.')} is {list(known[name].size)} there, {list(tensor.shape)} here"
    return None
