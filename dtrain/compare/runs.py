"""The runs to compare, checked before any work starts, and those of them that differ by their seed only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.build import open_data
from dtrain.checkpoint import Checkpointer, CheckpointError
from dtrain.config import Config, ConfigError, HeldOut, signature
from dtrain.data.shards import ShardError
from dtrain.evaluate.stored import read_config
from dtrain.files import read_json, read_lines
from dtrain.results import last_evaluations, metrics_on
from dtrain.target import completed
from dtrain.world import World


@dataclass(frozen=True)
class Run:
    """A finished run. config: with the model's defaults. checkpoint: the newest. lines: all of its metrics.jsonl.

    metrics: of its last evaluation, on the split. step: of that. label: what its sweep sets for it, or its name.
    """

    folder: Path
    config: Config
    environment: dict[str, Any]
    checkpoint: Path
    lines: list[dict[str, Any]]
    metrics: dict[str, float]
    step: Any
    label: str

    @property
    def data(self) -> dict[str, str]:
        """The digest of each split that it was trained on."""
        found: dict[str, str] = self.environment["data"]
        return found

    @property
    def model(self) -> str:
        """The class's name."""
        return str(self.config.model["_target_"]).rpartition(".")[2]


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed only, smallest seed first. label: a name among the rows."""

    label: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]


def expand(paths: Sequence[Path]) -> dict[Path, str]:
    """The run folders, each once, and their labels; a sweep's folder stands for its points' runs.

    ConfigError for a damaged sweep.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        points = _points(path) if (path / "sweep.json").exists() else [(path, path.name)]
        for run, label in points:
            found.setdefault(run.resolve(), (run, label))
    return dict(found.values())


def _points(sweep: Path) -> list[tuple[Path, str]]:
    try:
        return [(Path(p["run"]), _label(p)) for p in read_json(sweep / "sweep.json")["points"]]
    except (AttributeError, KeyError, TypeError) as e:
        raise ConfigError(f"{sweep / 'sweep.json'} is damaged: name the run folders themselves") from e


def _label(point: dict[str, Any]) -> str:
    """lr=0.1, width=8: its values but for the seed; ali where that is model=table/ali; else the run's name."""
    values = {k: v for k, v in point.get("values", {}).items() if k != "seed"}
    if list(values) == ["model"]:
        return str(values["model"]).rpartition("/")[2]
    return ", ".join(f"{k}={v}" for k, v in values.items()) or Path(point["run"]).name


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """An error about a run becomes a ConfigError in one line that begins with its folder."""
    try:
        yield
    except (ConfigError, CheckpointError, ShardError) as e:
        raise ConfigError(f"{folder}: {'; '.join(map(str.strip, str(e).splitlines()))}") from e


def read_run(folder: Path, label: str, split: HeldOut, overrides: Sequence[str], modules: Sequence[str]) -> Run:
    """A run's files. ConfigError, in one line that says what to do, where it cannot be compared."""
    with naming(folder):
        if not (folder / "config.yaml").is_file():
            raise ConfigError("is no run folder, it has no config.yaml: name runs/<name>, or sweeps/<id>")
        state = read_json(folder / "status.json").get("state")
        if state != "finished":
            known = state or "its status.json is missing or damaged"
            raise ConfigError(f"is not finished ({known}): wait for it, or start it again to continue")
        config = completed(read_config(folder, overrides, modules))
        environment = read_json(folder / "environment.json")
        _check_data(config, environment.get("data"))
        evaluations = last_evaluations(folder)
        metrics = metrics_on(split, evaluations)
        if not metrics:
            command = f"python -m dtrain.evaluate {folder} evaluate.split={split}"
            raise ConfigError(f"has no evaluation of its result on {split}: {command}")
        step, lines = evaluations[-1].get("step"), read_lines(folder / "metrics.jsonl")
        return Run(folder, config, environment, _checkpoint(folder, config), lines, metrics, step, label)


def _check_data(config: Config, trained_on: Any) -> None:
    """ConfigError unless the data is there, and what the run was trained on."""
    if not isinstance(trained_on, dict):
        raise ConfigError("environment.json is missing or damaged, so its data is not known: train it anew")
    now = {split.path.name: split.content for split in open_data(config)}
    if now != trained_on:
        raise ConfigError(
            f"was trained on other data than data.path={config.data.path} now holds: prepare that again"
        )


def _checkpoint(folder: Path, config: Config) -> Path:
    """The newest checkpoint. ConfigError unless it verifies."""
    problems: list[str] = []
    found = Checkpointer(folder / "checkpoints", config.trainer.checkpoint, World(), problems.append).latest()
    if found is None or problems:
        why = problems[0] if problems else "has no checkpoint"
        raise ConfigError(f"{why}: copy it again from where it was trained, or train it anew")
    return found[0]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Seeds together, in the order of the first of each. ConfigError for a configuration that comes twice."""
    groups: dict[Any, dict[int, Run]] = {}
    for run in runs:
        key = signature(run.config.model_copy(update={"seed": 0})), tuple(sorted(run.data.items()))
        seeds = groups.setdefault(key, {})
        other = seeds.setdefault(run.config.seed, run)
        if other is not run:
            raise ConfigError(
                f"{other.folder} and {run.folder} are the same configuration and seed: name one of them"
            )
    found = [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]
    names = Counter(same[0].label for same in found)
    return [Row(r.label if names[r.label] == 1 else str(r.folder), same) for same in found for r in [same[0]]]


def check_same_images(runs: Sequence[Run]) -> None:
    """ConfigError, naming two of them, unless all were trained on the same images."""
    first = runs[0]
    for run in runs:
        shapes = ["x".join(map(str, r.config.data.image_shape)) for r in (first, run)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{first.folder} has images of {shapes[0]}, {run.folder} of {shapes[1]}: a picture shows one size; "
                "name runs on the same data, or --table-only"
            )
        if run.data != first.data:
            names = [r.config.data.name for r in (first, run)]
            raise ConfigError(
                f"{first.folder} was trained on other data ({names[0]}) than {run.folder} ({names[1]}), by their "
                "environment.json: name runs on the same data, or --table-only"
            )
