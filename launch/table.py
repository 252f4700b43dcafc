"""Tables of a sweep for a person: the plan, the status, and the live view."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.standing import ACTIVE, State, states
from launch.store import SweepFolder

_COLOURS = {
    "finished": "green",
    "running": "cyan",
    "pending": "dim",
    "paused": "yellow",
    "failed": "red",
    "lost": "red",
}
REFRESH = 2.0  # seconds between two looks


def counts(found: list[State]) -> str:
    """12 finished, 3 running, …"""
    return ", ".join(f"{n} {name}" for name, n in Counter(s.name for s in found).most_common())


def number(value: Any) -> str:
    """A value as a person writes it: 0.0001 as 1e-4."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-")
    return str(value)


def titles(keys: list[str]) -> list[str]:
    """Of the columns of `cells`."""
    return ["#", *keys, "state", "step", "loss", "images/s", "hours", "ETA", "restarts", "code", ""]


def cells(s: State, keys: list[str]) -> list[str]:
    """A point's row: its values, where it stands, and why it waits or failed."""
    running = s.name == "running"
    return [
        str(s.entry.index),
        *(number(s.entry.values[k]) for k in keys),
        s.name,
        f"{s.status['step']}/{s.status['max_steps']}" if {"step", "max_steps"} <= s.status.keys() else "",
        number(s.status["loss"]) if "loss" in s.status else "",
        f"{s.status['images_per_s']:,.0f}" if "images_per_s" in s.status else "",
        duration(s.status["seconds"]) if "seconds" in s.status else "",
        duration(s.status["eta_s"]) if running and s.status.get("eta_s") is not None else "",
        str(s.restarts or ""),
        s.code,
        s.note,
    ]


def table(found: list[State], keys: list[str]) -> Table:
    """For a terminal: a row for each point."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles(keys):
        view.add_column(title, overflow="fold")
    for s in found:
        # Plain text: a value or an error may hold what rich would read as markup.
        view.add_row(*map(Text, cells(s, keys)), style=_COLOURS.get(s.name, ""))
    return view


def duration(seconds: float) -> str:
    """1:23:45"""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def show(found: list[State], keys: list[str]) -> None:
    """Prints the table: a line for each point, however long, where the output is not a terminal."""
    console = Console()
    if console.is_terminal:
        console.print(table(found, keys))
        return
    rows = [titles(keys), *(cells(s, keys) for s in found)]  # rich takes a millisecond for each
    lines = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def watch(sweep: SweepFolder, more: Callable[[], bool] = lambda: False) -> list[State]:
    """Shows the table until no point is waiting or running; a line for each change where there is no terminal.

    more: whether some will be, though none is.
    """
    console = Console()
    found, before = states(sweep.points), ""
    with Live(table(found, sweep.keys), console=console, auto_refresh=False, transient=True) as live:
        while any(s.name in ACTIVE for s in found) or more():
            if console.is_terminal:
                live.update(table(found, sweep.keys), refresh=True)
            elif counts(found) != before:
                before = counts(found)
                print(before, flush=True)
            time.sleep(REFRESH)
            found = states(sweep.points)
    show(found, sweep.keys)
    return found
