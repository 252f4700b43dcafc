"""A sweep's page: a table of its settings, how they lie to one another, their curves, and what has failed."""

from __future__ import annotations

import os
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dtrain.files import parse_lines, read_json
from dtrain.hours import hours
from dtrain.metrics import larger_is_better
from dtrain.report.differences import words
from dtrain.report.page import write
from dtrain.report.series import Curve, curves
from dtrain.results import number
from launch.codes import mixed
from launch.heatmap import cells
from launch.results import (
    Row,
    Setting,
    axis_values,
    curve_length,
    default_objective,
    grouped,
    kept_rows,
    kept_settings,
    read_rows,
    swept_axes,
    without_seed,
)
from launch.standing import ACTIVE, State
from launch.store import SweepFolder
from launch.table import counts
from launch.table import number as plain

LOG_LINES = 20  # of the end of a failed point's log


def sweep_page(folder: Path, out: Path, objective: str | None = None, every: float | None = None) -> bool:
    """Writes the page of a sweep; whether points are waiting or running.

    objective: not given, that of `default_objective`. every: seconds after which an open page is read again while
    points are. ConfigError for another objective than the runs have, or a damaged sweep.
    """
    sweep = SweepFolder.open(folder)
    return write_page(sweep, read_rows(sweep), kept_rows(sweep), out, objective, every)


def write_page(
    sweep: SweepFolder, rows: list[Row], kept: list[Row], out: Path, objective: str | None, every: float | None = None
) -> bool:
    """`sweep_page` of points that were read before."""
    objective = objective or default_objective(rows)
    groups = grouped(rows, objective)
    states = [row.state for row in rows]
    active = any(s.name in ACTIVE for s in states)
    keys = [k for k in sweep.keys if k != "seed"]
    metrics = [m for m in dict.fromkeys(m for row in rows for m in row.metrics) if m != objective]
    costs = {row.state.entry.run: _costs(row) for row in [*rows, *kept]}
    command = words(read_json(sweep.path / "sweep.json").get("command"))
    values = {
        "name": sweep.id,
        "command": shlex.join(["python", "launch/sweep.py", *command]),
        "counts": counts(states),
        "warning": mixed(row.state for row in rows if row.metrics),
        "best": groups[0] if groups else None,
        "objective": objective,
        "larger": larger_is_better(objective),
        "head": [*keys, "state", objective, f"test/{objective}", "hours", "images/s", "code", "runs", *metrics],
        "table": [_cells(g, rows, keys, metrics, objective, costs, out) for g in _settings(groups, rows)]
        + [_cells(g, g.rows, keys, metrics, objective, costs, out) for g in kept_settings(kept, objective)],
        "failures": [_failure(s) for s in states if s.name in ("failed", "lost")],
        "cost": _total(costs),
        "refresh": int(every) if every and active else None,
    }
    write(out, "sweep.html", values, {
        "curves": _curves(rows),
        "objective": objective,
        "larger": larger_is_better(objective),
        "parallel": _parallel(groups, keys, objective),
        "heat": _heat(sweep, groups, objective),
    })  # fmt: skip
    return active


def _settings(groups: list[Setting], rows: list[Row]) -> list[Setting]:
    """The groups, best first; then the points that have no result, seeds together, without a mean."""
    known = {tuple(g.values.items()) for g in groups}
    others: dict[Any, list[Row]] = {}
    for row in rows:
        if (key := tuple(without_seed(row).items())) not in known:
            others.setdefault(key, []).append(row)
    return [*groups, *(Setting(dict(key), same, float("nan"), 0.0, {}, {}) for key, same in others.items())]


def _cells(
    setting: Setting, rows: list[Row], keys: list[str], metrics: list[str], objective: str,
    costs: dict[Path, tuple[str, float, float | None]], out: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row of the table: text, sort (what a column is sorted by) and links of each cell."""
    same = [row for row in rows if without_seed(row) == setting.values]
    spent = [costs[row.state.entry.run] for row in same]
    speeds = [speed for _, _, speed in spent if speed is not None]
    found = [_cell(setting.values[k]) for k in keys]
    found.append(_cell(_state([row.state for row in same])))
    found.append(_spread([row.metrics[objective] for row in same if objective in row.metrics]))
    found.append(_spread([row.test[objective] for row in same if objective in row.test]))
    found += [_cell(sum(h for _, h, _ in spent)), _cell(statistics.fmean(speeds) if speeds else None)]
    found.append(_cell(", ".join(dict.fromkeys(filter(None, (row.state.code for row in same))))))
    links = [(row.state.entry.run.name, _link(row.state.entry.run, out)) for row in same]
    found.append({"text": "", "sort": links[0][0], "links": links})
    return found + [_spread([row.metrics[m] for row in same if m in row.metrics]) for m in metrics]


def _cell(value: Any, std: float | None = None) -> dict[str, Any]:
    """NaN is shown as nothing, and sorted last."""
    nothing = value is None or value != value  # noqa: PLR0124  # NaN
    shown = f"{value:.6g}" if isinstance(value, float) else value
    text = "" if nothing else f"{shown}" + ("" if std is None else f" ± {std:.2g}")
    return {"text": text, "sort": "" if nothing else value, "links": []}


def _spread(values: list[float]) -> dict[str, Any]:
    """The cell of a mean and the sample's standard deviation, as far as there are such."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return _cell(statistics.fmean(values) if values else None, std)


def _state(states: list[State]) -> str:
    return states[0].name if len(states) == 1 else counts(states)


def _link(run: Path, out: Path) -> str | None:
    """The way from the page to the run's own, if it has one."""
    page = run / "report.html"
    return quote(os.path.relpath(page, out.absolute().parent), errors="replace") if page.is_file() else None


def _costs(row: Row) -> tuple[str, float, float | None]:
    """core-hours or GPU-hours, how many, and images/s."""
    lines = parse_lines(row.log)
    speeds = [s for line in lines if (s := number(line.get("images_per_s"))) is not None]
    environment = read_json(row.state.entry.run / "environment.json")
    return *hours(lines, environment), statistics.median(speeds) if speeds else None


def _total(costs: dict[Path, tuple[str, float, float | None]]) -> str:
    kinds: Counter[str] = Counter()
    for kind, spent, _ in costs.values():
        kinds[kind] += spent  # type: ignore[assignment]
    return ", ".join(f"{spent:.4g} {kind}" for kind, spent in kinds.items() if spent)


def _failure(state: State) -> dict[str, str]:
    """What a person needs to see of a point that has failed."""
    return {
        "label": _label(state),
        "state": state.name,
        "note": state.note,
        "tail": "\n".join(state.owner.tail(LOG_LINES)) if state.owner else "",
        "run": str(state.entry.run),
    }


def _label(state: State) -> str:
    """#3 model.lambda_rec=0.1, …"""
    return f"#{state.entry.index} " + ", ".join(f"{k}={plain(v)}" for k, v in state.entry.values.items())


def _curves(rows: list[Row]) -> dict[str, list[Curve]]:
    """Metric -> each point's curve: of evaluations on the validation split, then of losses and gradients."""
    most, found = curve_length(len(rows)), dict[str, list[Curve]]()
    for row in rows:
        lines = parse_lines(row.log)
        evaluated = curves([m for m in lines if m.get("kind") == "evaluation" and m.get("split") == "valid"], most)
        trained = curves([m for m in lines if m.get("kind") == "train"], most)
        shown = evaluated | {k: v for k, v in trained.items() if k.startswith(("loss/", "grad_norm/"))}
        for name, curve in shown.items():
            found.setdefault(name, []).append({**curve, "name": _label(row.state)})
    return found


def _parallel(groups: list[Setting], keys: list[str], objective: str) -> list[dict[str, Any]] | None:
    """Axes (label, values, ticks of what are no numbers) with a value for every setting, the objective last."""
    if len(groups) < 2:
        return None
    axes = [_axis(key, [g.values[key] for g in groups]) for key in keys]
    return [*axes, {"label": objective, "values": [g.mean for g in groups], "ticks": None}]


def _axis(key: str, values: list[Any]) -> dict[str, Any]:
    """By place among the swept values: they are seldom evenly spaced."""
    found = list({plain(v): v for v in values}.items())
    if all(isinstance(v, int | float) for _, v in found):
        found.sort(key=lambda f: f[1])
    names = [name for name, _ in found]
    return {"label": key, "values": [names.index(plain(v)) for v in values], "ticks": names}


def _heat(sweep: SweepFolder, groups: list[Setting], objective: str) -> dict[str, Any] | None:
    """Rows, columns, the objective of each cell, and the best one's place, where the sweep is a grid of two axes."""
    axes = swept_axes(sweep, None)
    if not axes or not groups:
        return None
    (row, rows), (column, columns) = axis_values(sweep, axes).items()
    best, means = groups[0].values, {tuple(g.values.items()): g.mean for g in groups}
    return {
        "row": row, "rows": [plain(v) for v in rows], "column": column, "columns": [plain(v) for v in columns],
        "values": cells(means, {row: rows, column: columns}, objective).tolist(),
        "best": [rows.index(best[row]), columns.index(best[column])],
    }  # fmt: skip
