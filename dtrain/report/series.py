"""The numbers of metrics.jsonl as curves and panels, whatever else its lines hold. Without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dtrain.metrics import family, member
from dtrain.results import NOT_METRICS, number

Line = dict[str, Any]
Curve = dict[str, Any]  # name; x: steps; y: values; markers and test: how it is drawn

# A panel's title -> the numbers of the trainer that it shows.
_TRAINER = {"images/s": ("images_per_s",), "seconds a step, and of them waiting for data": ("step_s", "data_wait_s"),
            "memory in MB": ("memory_mb",)}  # fmt: skip
_HIDDEN = ("images",)


def step_of(line: Line) -> int | None:
    """The line's step; None if it has none that makes sense."""
    step = line.get("step")
    return step if isinstance(step, int) and 0 <= step < 2**53 else None


def curves(lines: Iterable[Line], most: int) -> dict[str, Curve]:
    """Metric -> its curve, of every n-th value where there are more than `most`; NaN and infinities are gaps."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        step = step_of(line)
        for name, raw in line.items() if step is not None else ():
            value = None if name in NOT_METRICS else number(raw)
            if value is not None and step is not None:
                found.setdefault(name, []).append((step, value))
    return {name: _curve(name, points, most) for name, points in found.items()}


def _curve(name: str, points: list[tuple[int, float]], most: int) -> Curve:
    kept = points[:: -(-len(points) // most)]
    kept += [] if kept[-1] is points[-1] else [points[-1]]
    # Six digits are more than a plot shows.
    return {"name": name, "x": [x for x, _ in kept], "y": [float(f"{y:.6g}") for _, y in kept]}


def panels(found: dict[str, Curve]) -> list[dict[str, Any]]:
    """Training curves by panel: title, log (whether its axis begins as a logarithmic one) and traces."""
    trainer = {metric: title for title, metrics in _TRAINER.items() for metric in metrics}
    grouped: dict[str, list[Curve]] = {}
    for name, curve in found.items():
        if name in _HIDDEN:
            continue
        update = member(name).partition("/")[0]
        of_update = f"{family(name)}/{update}" if update and family(name) in ("loss", "grad_norm", "watch") else ""
        title = trainer.get(name, of_update or family(name))
        label = name.removeprefix(f"{title}/") if name != title else "sum"
        grouped.setdefault(title, []).append({**curve, "name": label})
    order = ("loss", "grad_norm", "watch", "lr")
    titles = sorted(grouped, key=lambda t: order.index(family(t)) if family(t) in order else len(order))
    return [_panel(title, grouped[title]) for title in titles]


def _panel(title: str, traces: Sequence[Curve]) -> dict[str, Any]:
    values = [y for trace in traces for y in trace["y"] if not math.isnan(y)]
    positive = bool(values) and min(values) > 0
    return {"title": title, "log": positive and max(values) > 20 * min(values), "traces": list(traces)}


def evaluation_panels(valid: dict[str, Curve], test: dict[str, Curve]) -> list[dict[str, Any]]:
    """Evaluations by family of metrics: those on the validation split, and points on the test split."""
    grouped: dict[str, list[Curve]] = {}
    for split, found in (("valid", valid), ("test", test)):
        for name, curve in found.items():
            marked = {**curve, "name": member(name) or name, "markers": True, "test": split == "test"}
            grouped.setdefault(family(name), []).append(marked)
    return [_panel(title, traces) for title, traces in grouped.items()]
