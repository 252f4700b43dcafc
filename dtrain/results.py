"""The numbers that a run ended with, and names as text that is safe in a table. Without torch."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.files import begins, read_lines

if TYPE_CHECKING:
    import pandas as pd

LINE = 512  # bytes of a line of metrics.jsonl, about
NOT_METRICS = ("kind", "step", "time", "split", "epoch")


def last_evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of the run folder's last evaluated step, on every split; [] if it was never evaluated."""
    return last_evaluated(_evaluations(run))


def last_evaluated(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`last_evaluations` of lines of metrics.jsonl that have been read."""
    found = [m for m in lines if m.get("kind") == "evaluation"]
    return [m for m in found if m.get("step") == found[-1].get("step")]


def thinned(run: Path, most: int) -> bytes:
    """The run folder's metrics.jsonl, of many more lines than `most` what a table and a curve need.

    All starts and evaluations, with what comes before them back to a line of training; about `most` others, evenly
    spread; and the end. b"" if there is none.
    """
    try:
        content = (run / "metrics.jsonl").read_bytes()
    except OSError:
        return b""
    content = content[: content.rfind(b"\n") + 1]  # without a line that is being written
    if len(content) <= most * LINE:
        return content
    kept = set[int]()
    for mark in sorted({*begins(content, b'"evaluation"'), *begins(content, b'"start"'), len(content)}):
        at = mark
        while at not in kept:
            kept.add(at)
            if at == 0 or (at < mark and b'"train"' in content[at : content.index(b"\n", at)]):
                break
            at = content.rfind(b"\n", 0, at - 1) + 1
    kept |= {content.rfind(b"\n", 0, i * len(content) // most) + 1 for i in range(most)}
    return b"".join(content[at : content.find(b"\n", at) + 1] for at in sorted(kept))


def evaluation_from(run: Path, step: int | float) -> list[dict[str, Any]]:
    """As last_evaluations, of the first step evaluated from `step` on; of the last one if there is none."""
    lines = _evaluations(run)
    first = next((m["step"] for m in lines if m.get("step", 0) >= step), None)
    return [m for m in lines if m.get("step") == first] or last_evaluations(run)


def _evaluations(run: Path) -> list[dict[str, Any]]:
    return [m for m in read_lines(run / "metrics.jsonl", b'"evaluation"') if m.get("kind") == "evaluation"]


def metrics_on(split: str, lines: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of evaluations of the same weights, of those on the split; a later one adds to them."""
    result: dict[str, Any] = {}
    for line in lines:
        result |= line if line.get("split") == split else {}
    numbers = {k: number(v) for k, v in result.items() if k not in NOT_METRICS}
    return {k: v for k, v in numbers.items() if v is not None}


def number(value: Any) -> float | None:
    """A metric, which may be 'nan' or 'inf'; None if it is damaged."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, whatever its cells hold."""
    lines = [list(frame.columns), ["--"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "".join("| " + " | ".join(inert(str(cell)) for cell in line) + " |\n" for line in lines)


def inert(text: str) -> str:
    """Any text as one line within a cell of a Markdown table."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return html.escape(line, quote=False).replace("|", "&#124;")
