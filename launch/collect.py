"""python launch/collect.py SWEEP: a sweep's results as results.csv, results.md, report.html, heatmap.png and
front.png, best point first.

Points are judged by the validation split; the test split's numbers stand beside them as test/<metric>. Works while
the sweep still runs, and says which points are missing. dtrain/metrics.py knows which way each metric is better.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

if not __package__:  # as a script, Python would look in launch/ only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dtrain.config import ConfigError
from dtrain.report.sweep import write_page
from dtrain.results import inert
from dtrain.results import markdown as as_markdown
from launch.codes import mixed
from launch.front import Point
from launch.front import draw as draw_front
from launch.heatmap import draw
from launch.results import (
    Row,
    Setting,
    axis_values,
    check_metric,
    default_objective,
    frame_of,
    grouped,
    kept_rows,
    kept_settings,
    read_rows,
    swept_axes,
)
from launch.store import SweepFolder
from launch.table import number


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="a sweep's id")
    parser.add_argument("--dir", type=Path, default=Path("sweeps"), help="folder of the sweeps (default: sweeps)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the sweep's own)")
    parser.add_argument("--objective", help="metric to judge by (default: objective, Eq. 14, if there is one)")
    parser.add_argument("--heat", nargs=2, metavar="KEY", help="rows and columns of the heat map, of the swept keys")
    parser.add_argument(
        "--front", nargs=2, metavar="METRIC", action="append", default=[],
        help="two metrics against each other, in front.png; again for a panel more",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        sweep = SweepFolder.open((args.dir / Path(args.sweep).name).absolute())
        collect(sweep, args.out or sweep.path, args.objective, args.heat, args.front)
    except ConfigError as e:
        print(f"collect: {e}", file=sys.stderr)
        return 2
    return 0


def collect(
    sweep: SweepFolder, out: Path, objective: str | None, heat: list[str] | None,
    front: list[list[str]] | None = None,
) -> None:  # fmt: skip
    """Writes the tables and the pictures, and prints the table, the best point and what is missing."""
    rows, kept = read_rows(sweep), kept_rows(sweep)
    if objective is None:
        objective = default_objective(rows)
        if objective != "objective":
            print(f"no objective in these results: judged by {objective}; --objective chooses another metric\n")
    groups = grouped(rows, objective)
    axes = swept_axes(sweep, heat)
    points = _points(groups, front or [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--out {out}: is no folder that can be made ({e})") from e
    _write_csv(out / "results.csv", sweep, [*rows, *kept])
    text = markdown(groups, rows, objective, kept_settings(kept, objective))
    (out / "results.md").write_text(text)
    print(text)
    files = [out / "results.csv", out / "results.md"]
    if axes and groups:
        draw(
            out / "heatmap.png",
            {tuple(g.values.items()): g.mean for g in groups},
            axis_values(sweep, axes),
            objective,
        )
        files.append(out / "heatmap.png")
    if front and points:
        draw_front(out / "front.png", points, [(x, y) for x, y in front])
        files.append(out / "front.png")
    write_page(sweep, rows, kept, out / "report.html", objective)
    files.append(out / "report.html")
    print("wrote " + " ".join(map(str, files)))


def plain(value: Any) -> str:
    """A value as one line of text within a cell, whatever it holds."""
    return inert(number(value))


def _points(groups: list[Setting], front: list[list[str]]) -> list[Point]:
    """The settings with the means of the metrics asked for. Raises ConfigError for one that no run has."""
    metrics = [m for pair in front for m in pair]
    for metric in metrics:
        check_metric("--front", metric)
        if groups and not any(metric in r.metrics for g in groups for r in g.rows):
            raise ConfigError(f"--front {metric}: the runs have {', '.join(sorted(groups[0].rows[0].metrics))}")
    return [Point(g.values, {m: g.means[m] for m in metrics}) for g in groups]


def markdown(groups: list[Setting], rows: list[Row], objective: str, kept: list[Setting] | None = None) -> str:
    """The table, the best point, and the points that are missing. kept: of other code, which are not judged."""
    lines, shown = [], [*groups, *(kept or [])]
    codes = {_code(g): None for g in shown}
    if shown:
        keys = list(shown[0].values)
        others = [m for m in shown[0].rows[0].metrics if m != objective]
        seeds = any(len(g.rows) > 1 for g in shown)
        cells = []
        for g in shown:
            score = f"{g.mean:.6g} ± {g.std:.2g} ({len(g.rows)})" if seeds else f"{g.mean:.6g}"
            rest = [_cell(g, m, seeds) for m in (*others, f"test/{objective}")] + [_code(g)] * (len(codes) > 1)
            cells.append([*(number(g.values[k]) for k in keys), score, *rest])
        head = [*keys, f"{objective} mean ± std (seeds)" if seeds else objective, *others, f"test/{objective}"]
        head += ["code"] * (len(codes) > 1)
        lines += [as_markdown(pd.DataFrame(cells, columns=head)).rstrip()]
        lines += ["", f"code: {', '.join(codes)}"] if any(codes) else []
    if groups:
        best = ", ".join(f"{plain(k)}={plain(v)}" for k, v in groups[0].values.items()) or "all seeds"
        runs = " ".join(plain(r.state.entry.run) for r in groups[0].rows)
        lines += ["", f"best of {len(groups)} by {objective}: {best} ({groups[0].mean:.6g}) in {runs}"]
    if kept:
        lines += ["", f"of other code, kept and not judged: the last {len(kept)} rows"]
    if said := mixed(r.state for r in rows if r.metrics):
        lines += ["", said]
    missing = [r.state for r in rows if not r.metrics]
    if missing:
        names = ", ".join(f"{n} {name}" for name, n in Counter(s.name for s in missing).items())
        lines += ["", f"missing: {len(missing)} of {len(rows)} points ({names})"]
        lines += [f"- {s.entry.index}: " + ", ".join(f"{plain(k)}={plain(v)}" for k, v in s.entry.values.items())
                  + f": {plain(s.name)} {plain(s.note)}".rstrip() for s in missing]  # fmt: skip
    else:
        lines += ["", f"all {len(rows)} points are finished"]
    return "\n".join(lines).strip() + "\n"


def _code(setting: Setting) -> str:
    return ", ".join({r.state.code: None for r in setting.rows})


def _cell(setting: Setting, metric: str, seeds: bool) -> str:
    mean, std = setting.means.get(metric, math.nan), setting.stds.get(metric, math.nan)
    return f"{mean:.4g} ± {std:.2g}" if seeds else f"{mean:.4g}"


def _write_csv(path: Path, sweep: SweepFolder, rows: list[Row]) -> None:
    """The frame. nan is a number that a finished point has not, or that is none; others' numbers are empty."""
    frame = frame_of(rows, sweep.keys)
    numbers = sorted({m for row in rows for m in row.numbers})
    done = [bool(row.metrics) for row in rows]
    frame = frame.astype(dict.fromkeys(numbers, object))
    frame.loc[done, numbers] = frame.loc[done, numbers].fillna("nan")
    frame.to_csv(path, index=False)


if __name__ == "__main__":
    sys.exit(main())
