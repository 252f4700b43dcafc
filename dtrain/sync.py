"""python -m dtrain.sync RUN … --to wandb|mlflow|trackio: sends what runs have logged to an experiment tracker.

Metrics, configuration and pictures, at any time after they were written. A run keeps its name and id there, which end
in or are its signature, so that doing it again adds what is new: RUN/sync.json remembers what was sent where.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dtrain import compose as configs
from dtrain.config import ConfigError, signature
from dtrain.files import read_json, read_lines, write_json
from dtrain.results import NOT_METRICS

METRICS, PARAMS = 1000, 100  # what MLflow takes in one request
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """Numbers of one step. time: Unix seconds."""

    kind: str
    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Parcel:
    """What is to be sent of one run. name: ends in the id, its signature. pictures: files by name."""

    project: str
    name: str
    id: str
    config: dict[str, Any]
    state: str
    lines: list[Line]
    pictures: dict[str, Path]

    @property
    def step(self) -> int:
        """The last one."""
        return max(line.step for line in self.lines)


def to_wandb(parcel: Parcel) -> None:
    """As WANDB_MODE and `wandb login` say. The step is a metric: wandb's own takes no line of an earlier one."""
    from wandb import Image, init

    run = init(project=parcel.project, id=parcel.id, name=parcel.name, config=parcel.config, resume="allow")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    for line in parcel.lines:
        run.log({"step": line.step, **line.values})
    if parcel.pictures:
        run.log({"step": parcel.step, **{k: Image(str(file)) for k, file in parcel.pictures.items()}})
    run.finish()


def to_mlflow(parcel: Parcel) -> None:
    """To the server or database of MLFLOW_TRACKING_URI."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    known = client.get_experiment_by_name(parcel.project)
    experiment = known.experiment_id if known else client.create_experiment(parcel.project)
    same = client.search_runs([experiment], f"tags.signature = '{parcel.id}'")
    tags = {"signature": parcel.id}
    run = (same[0] if same else client.create_run(experiment, run_name=parcel.name, tags=tags)).info.run_id
    for part in _parts([Param(k, v) for k, v in _leaves(parcel.config)], PARAMS):  # again the same: no change
        client.log_batch(run, params=part)
    numbers = [Metric(k, v, int(m.time * 1000), m.step) for m in parcel.lines for k, v in m.values.items()]
    for rows in _parts(numbers, METRICS):
        client.log_batch(run, metrics=rows)
    for file in parcel.pictures.values():
        client.log_artifact(run, str(file), "images")
    if parcel.state in ("finished", "failed"):
        client.set_terminated(run, parcel.state.upper())


def to_trackio(parcel: Parcel) -> None:
    """To the folder TRACKIO_DIR, or the server of TRACKIO_SERVER_URL. It knows a run by its name."""
    from trackio import Image, init

    run = init(
        parcel.project, parcel.name, config=parcel.config, resume="allow",
        embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    for line in parcel.lines:
        run.log(line.values, step=line.step)
    if parcel.pictures:
        run.log({k: Image(str(file)) for k, file in parcel.pictures.items()}, step=parcel.step)
    run.finish()


TRACKERS = {"wandb": to_wandb, "mlflow": to_mlflow, "trackio": to_trackio}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _parts(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def logged(folder: Path) -> list[Line]:
    """The numbers of a run's metrics.jsonl, those of evaluations called <split>/<metric> as in TensorBoard."""
    found = []
    for line in read_lines(folder / "metrics.jsonl"):
        if line.get("kind") not in ("train", "evaluation"):
            continue
        prefix = f"{line['split']}/" if "split" in line else ""
        values = {f"{prefix}{k}": float(v) for k, v in line.items() if k not in NOT_METRICS}
        found.append(Line(line["kind"], int(line["step"]), float(line["time"]), values))
    return found


def sync(folder: Path, to: str, project: str) -> int:
    """Sends what is new in a run folder; returns how many lines. Raises ConfigError."""
    config = configs.typed(configs.load(folder / "config.yaml"))
    place, record = f"{to}/{project}", read_json(folder / "sync.json")
    sent = record.get(place, {"step": -1, "time": -1.0})
    try:
        # A restart repeats steps; an evaluation may be repeated at any time.
        lines = [m for m in logged(folder) if (m.step > sent["step"] if m.kind == "train" else m.time > sent["time"])]
    except (KeyError, ValueError, TypeError) as e:
        raise ConfigError(f"{folder / 'metrics.jsonl'} or sync.json beside it is damaged ({e!r})") from e
    if not lines:
        return 0
    own, name = signature(config), str(config.run.name or folder.name)
    evaluated = any(m.kind == "evaluation" for m in lines)
    images = sorted((folder / "images").glob("*.png")) if evaluated else []
    parcel = Parcel(
        project, name if name.endswith(own) else f"{name}-{own}", own, config.model_dump(mode="json"),
        str(read_json(folder / "status.json").get("state")), lines, {f"images/{f.stem}": f for f in images},
    )  # fmt: skip
    try:
        TRACKERS[to](parcel)
    except ImportError as e:
        raise ConfigError(f"--to {to} needs its package ({e}): pip install 'dtrain[{to}]'") from e
    except Exception as e:  # whatever the tracker raises: no login, no server, no room
        raise ConfigError(f"{folder}: {to} did not take it: {type(e).__name__}: {e}") from e
    latest = {"train": sent["step"], "evaluation": sent["time"]}
    for line in lines:
        latest[line.kind] = max(latest[line.kind], line.step if line.kind == "train" else line.time)
    write_json(folder / "sync.json", {**record, place: {"step": latest["train"], "time": latest["evaluation"]}})
    return len(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dtrain.sync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--to", choices=sorted(TRACKERS), required=True, help="each an extra: dtrain[wandb], …")
    parser.add_argument("--project", default="dtrain", help="MLflow calls it an experiment (default: dtrain)")
    given = parser.parse_args(argv)
    try:
        for folder in given.runs:
            count = sync(folder, given.to, given.project)
            again = "" if count else f" (to send all again, remove {folder / 'sync.json'})"
            print(f"{folder}: {count or 'no'} new lines to {given.to}, project {given.project}{again}")
    except (ConfigError, OSError) as e:
        print(f"dtrain.sync: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
