"""Two metrics of a sweep's points against each other, with the front: the points that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.metrics import better, larger_is_better
from launch.table import number

MARKERS = "os^DvPX<>*"


@dataclass(frozen=True)
class Point:
    """Values of the swept keys, and the means of the metrics over seeds."""

    values: dict[str, Any]
    metrics: dict[str, float]


def front(points: Sequence[Point], x: str, y: str) -> list[Point]:
    """The points with both metrics, neither NaN, that no other is at least as good as in both and better in one."""

    def beats(a: Point, b: Point) -> bool:
        ways = [(better(m, a.metrics[m], b.metrics[m]), better(m, b.metrics[m], a.metrics[m])) for m in (x, y)]
        return any(is_better for is_better, _ in ways) and not any(is_worse for _, is_worse in ways)

    whole = [p for p in points if all(better(m, p.metrics.get(m, float("nan")), None) for m in (x, y))]
    return [p for p in whole if not any(beats(other, p) for other in whole)]


def draw(path: Path, points: Sequence[Point], pairs: Sequence[tuple[str, str]]) -> None:
    """A panel for each pair of metrics. Colours are the first swept key's values, markers the second's.

    The front is a line; beside its points stand the values of the other keys.
    """
    from matplotlib.figure import Figure

    keys = list(points[0].values)
    colour, marker = ([*keys, None, None])[:2]
    shades = _numbered(points, colour)
    shapes = _numbered(points, marker)
    figure = Figure(figsize=(6 * len(pairs), 5), layout="constrained")
    for plot, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for p in points:
            look = {"color": f"C{shades[p.values.get(colour or '')] % 10}"}
            look["marker"] = MARKERS[shapes[p.values.get(marker or "")] % len(MARKERS)]
            plot.plot(p.metrics.get(x, float("nan")), p.metrics.get(y, float("nan")), linestyle="", **look)
        best = sorted(front(points, x, y), key=lambda p: p.metrics[x])
        plot.plot([p.metrics[x] for p in best], [p.metrics[y] for p in best], color="0.5", zorder=0)
        for p in best:
            rest = ", ".join(f"{k.rpartition('.')[2]} {number(p.values[k])}" for k in keys[2:])
            plot.annotate(rest, (p.metrics[x], p.metrics[y]), fontsize=6, parse_math=False)
        for name, side in ((x, "x"), (y, "y")):
            plot.set(**{f"{side}label": f"{name} ({'larger' if larger_is_better(name) else 'smaller'} is better)"})
    legend = [(f"{colour}={number(v)}", f"C{n % 10}", "s") for v, n in shades.items() if colour]
    legend += [(f"{marker}={number(v)}", "k", MARKERS[n % len(MARKERS)]) for v, n in shapes.items() if marker]
    for label, shade, shape in legend:
        figure.axes[0].plot([], [], linestyle="", color=shade, marker=shape, label=label)
    for text in figure.axes[0].legend(fontsize="small").get_texts() if legend else ():
        text.set_parse_math(False)
    figure.savefig(path, dpi=150)


def _numbered(points: Sequence[Point], key: str | None) -> dict[Any, int]:
    """The values of a swept key, each with its place among them."""
    return {v: n for n, v in enumerate(dict.fromkeys(p.values.get(key or "") for p in points))}
