"""A run's page: what it is, curves, evaluations, pictures, checkpoints, what happened, and its latent space."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from dtrain.config import ConfigError
from dtrain.files import read_json, read_lines
from dtrain.hours import hours, on_cpu
from dtrain.report.differences import differences, started_by, words
from dtrain.report.page import write
from dtrain.report.series import Line, curves, evaluation_panels, panels, step_of
from dtrain.results import last_evaluations, metrics_on, number
from dtrain.source import codes

POINTS = 1000  # of a curve
LARGEST_PICTURE = 2**24  # bytes
PNG = b"\x89PNG\r\n\x1a\n"
ORDER = ("samples", "reconstructions", "interpolation", "paths", "between_samples", "latents")
ORDINARY = ("train", "evaluation", "start", "stage")  # kinds of lines; all others are warnings


def run_page(folder: Path, out: Path, modules: Sequence[str] = ()) -> None:
    """Writes the page of a run folder, finished or not.

    modules: of models outside dtrain.models, which may be imported; nothing else that the run brings is executed, and
    where that does not do, or there is no checkpoint that verifies, the page says why its explorer is missing.
    """
    lines = read_lines(folder / "metrics.jsonl")
    environment, status = read_json(folder / "environment.json"), read_json(folder / "status.json")
    evaluations = [line for line in lines if line.get("kind") == "evaluation"]
    valid, test = (curves([e for e in evaluations if e.get("split") == s], POINTS) for s in ("valid", "test"))
    found = curves([line for line in lines if line.get("kind") == "train"], POINTS)
    controls, missing = _explorer(folder, environment, modules)
    base, differing = _differences(folder, environment)
    last, events = last_evaluations(folder), _events(lines)
    values = {
        "name": folder.resolve().name,
        "about": about(folder, lines, environment, status),
        "base": base,
        "differing": differing,
        "table": _table(metrics_on("valid", last), metrics_on("test", last)),
        "pictures": _pictures(folder / "images"),
        "checkpoints": _checkpoints(folder / "checkpoints"),
        "events": events,
        "missing": missing,
        "environment": _environment(environment),
        "error": status.get("error") if status.get("state") == "failed" else None,
    }
    data = {
        "training": panels(found),
        "evaluations": evaluation_panels(valid, test),
        "controls": controls,
        "restarts": [step for step, kind, _ in events if kind == "restart"],
    }
    write(out, "run.html", values, data)


def about(folder: Path, lines: list[Line], environment: Line, status: Line) -> list[tuple[str, str]]:
    """What a person asks first, as rows of a table."""
    speeds = [s for line in lines if (s := number(line.get("images_per_s"))) is not None]
    kind, spent = hours(lines, environment)
    rows = {
        "state": str(status.get("state", "unknown")),
        "steps": f"{status.get('step', '?')} of {status.get('max_steps', '?')}",
        "started": _clock(next((line.get("time") for line in lines if line.get("kind") == "start"), None)),
        "last sign": _clock(status.get("time")),
        kind: f"{spent:.4g}",
        "images/s": f"{statistics.median(speeds):,.0f}" if speeds else "",
        "code": " then ".join(codes(folder)),
        "device": f"{environment.get('device', 'unknown')}, processes: {environment.get('world_size', '?')}",
        "command": shlex.join(["python", "-m", "dtrain", *words(environment.get("command"))[1:]]),
    }
    return [(k, v) for k, v in rows.items() if v]


def _clock(seconds: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _environment(environment: Line) -> list[tuple[str, str]]:
    """All that the run has noted of where it ran, nested dictionaries in rows of their own."""
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        inner = value.items() if isinstance(value, dict) else ((None, value),)
        rows += [(key if name is None else f"{key} {name}", str(v)) for name, v in inner]
    return rows


def _differences(folder: Path, environment: Line) -> tuple[str, list[tuple[str, Any, Any]]]:
    """As `differences`; why there are none, where the configuration cannot be read."""
    try:
        return differences(folder, started_by(folder, environment))
    except (ConfigError, OmegaConfBaseException) as e:
        return f"nothing: {e}", []


def _table(valid: dict[str, float], test: dict[str, float]) -> list[tuple[str, float | None, float | None]]:
    """Metric, its value on valid, and on test."""
    return [(name, valid.get(name), test.get(name)) for name in dict.fromkeys([*valid, *test])]


def _pictures(folder: Path) -> list[tuple[str, str | None]]:
    """Name and address of each PNG; None for what is none, or too large."""
    from dtrain.report.explorer import png

    files = sorted(f for f in folder.glob("*.png") if f.is_file())  # no pipe, which would never end
    files.sort(key=lambda f: ORDER.index(f.stem) if f.stem in ORDER else len(ORDER))
    small = [f.read_bytes() if f.stat().st_size <= LARGEST_PICTURE else b"" for f in files]
    return [(f.stem, png(data) if data.startswith(PNG) else None) for f, data in zip(files, small, strict=True)]


def _checkpoints(folder: Path) -> list[tuple[str, str, str]]:
    """Name, stage and metric (or what is wrong with it), and size in MB."""
    from dtrain.checkpoint import CheckpointError, read_seal, steps

    rows = []
    for path in steps(folder):
        try:
            info = read_seal(path)
            said = f"stage {info.get('stage')}" + (
                f", best: {info['value']}" if info.get("value") is not None else ""
            )
        except (CheckpointError, OSError) as e:
            said = str(e)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        rows.append((path.name, said, f"{size / 2**20:.1f} MB"))
    return rows


def _events(lines: list[Line]) -> list[tuple[int, str, str]]:
    """Step, kind and message of all that happened: restarts, stages and warnings."""
    events, step, starts = [], 0, 0
    for line in lines:
        kind, now = str(line.get("kind")), step_of(line)
        step = step if now is None else now
        if kind == "start":
            starts += 1
            if starts > 1:
                size = line.get("world_size", "?")
                code = f", code {line['code']}" if "code" in line else ""
                events.append((step, "restart", f"{_clock(line.get('time'))} with {size} processes{code}".strip()))
        elif kind == "stage" or kind not in ORDINARY:
            events.append((step, kind, str(line.get("message", ""))))
    return events


def _explorer(folder: Path, environment: Line, modules: Sequence[str]) -> tuple[list[dict[str, Any]], str | None]:
    """The controls, and why there are none or fewer."""
    from dtrain.build import open_data
    from dtrain.report.explorer import HeldOut, controls
    from dtrain.trained import load

    try:
        trained = load(folder, "cpu" if on_cpu(environment) else None, modules)
        if not trained.levels:
            return [], "the samples of this model are no images"
        heldout, missing = None, None
        try:
            heldout = HeldOut.of(open_data(trained.config)[2])
        except ConfigError as e:
            missing = f"what needs held-out images is left out: {e}"
        found = controls(trained, heldout)
        return found, missing if missing or found else "this latent space has nothing to show"
    except Exception as e:  # whatever a forged checkpoint, or a model's own code, raises
        return [], f"{type(e).__name__}: {e}"
