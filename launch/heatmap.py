"""The heat map of a sweep: the objective over two swept keys, the best point marked, missing ones hatched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dtrain.metrics import larger_is_better
from launch.table import number

Scores = dict[tuple[tuple[str, Any], ...], float]


def draw(path: Path, scores: Scores, axes: dict[str, list[Any]], objective: str) -> None:
    """scores: objective by ((key, value), …). axes: the two keys (rows, columns) with all their values.

    Where more keys were swept, a cell shows the best of its points. Colours are ranks: one diverged run would
    otherwise leave the others without contrast.
    """
    from matplotlib.figure import Figure

    grid = cells(scores, axes, objective)
    (row_key, rows), (column_key, columns) = axes.items()
    size = (2.5 + 0.95 * len(columns), 1.8 + 0.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    plot = figure.add_subplot()
    finite = np.isfinite(grid)
    ranks = np.full(grid.shape, np.nan)
    sign = -1.0 if larger_is_better(objective) else 1.0  # of sign * grid, the smallest is the best
    ranks[finite] = np.searchsorted(np.unique(sign * grid[finite]), sign * grid[finite])
    plot.imshow(ranks, cmap="viridis_r", aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        dark = finite[i, j] and ranks[i, j] > np.nanmax(ranks) / 2
        plot.text(j, i, f"{value:.4g}" if finite[i, j] else "–", ha="center", va="center", color="w" if dark else "k")
        if not finite[i, j]:
            plot.fill_between([j - 0.5, j + 0.5], i - 0.5, i + 0.5, hatch="///", facecolor="none", edgecolor="0.7")
    if finite.any():
        best = np.unravel_index(np.nanargmin(ranks), grid.shape)
        plot.add_patch(_frame(int(best[1]), int(best[0])))
    # A value may hold what would be read as a formula.
    plot.set_xticks(range(len(columns)), [number(v) for v in columns], parse_math=False)
    plot.set_yticks(range(len(rows)), [number(v) for v in rows], parse_math=False)
    plot.set_xlabel(column_key)
    plot.set_ylabel(row_key)
    more = "" if len(next(iter(scores))) == 2 else ", best over the other keys"
    which = "larger" if sign < 0 else "smaller"
    said = f"{objective} ({which} is better{more}; best framed)\nnumbers are values, colours their ranks"
    plot.set_title(said, fontsize="medium")
    figure.savefig(path, dpi=150)


def cells(scores: Scores, axes: dict[str, list[Any]], objective: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[rows, columns]: the best objective of each cell; NaN where there is none."""
    best = np.fmax if larger_is_better(objective) else np.fmin
    (row_key, rows), (column_key, columns) = axes.items()
    grid = np.full((len(rows), len(columns)), np.nan)
    for values, score in scores.items():
        point = dict(values)
        i, j = rows.index(point[row_key]), columns.index(point[column_key])
        grid[i, j] = best(grid[i, j], score)
    return grid


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=3)
