"""The results of benchmarks/gpu.py as a page of tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Result = dict[str, Any]  # of a part, see benchmarks/gpu_part.py


def _lines(head: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table, or nothing where it has no rows. head: its columns, with | between them."""
    found = [f"| {' | '.join('' if v is None else str(v) for v in row)} |" for row in rows]
    return ["", f"| {head} |", "|--" * (head.count("|") + 1) + "|", *found] if found else []


def _numbers(row: dict[str, Any], *left_out: str) -> str:
    found = {k: v for k, v in row.items() if k not in ("case", "ok", *left_out)}
    return ", ".join(f"{k} {v}" for k, v in found.items())


def _claims(results: dict[str, Result]) -> list[str]:
    rows = [
        (name, row) for name, r in results.items() for row in r.get("rows", []) if "ok" in row or "missing" in row
    ]
    said = [(n, row["case"], {True: "yes", False: "NO"}.get(row.get("ok"), "?"), _numbers(row)) for n, row in rows]
    return _lines("part | case | holds | found", said)


def _speeds(results: dict[str, Result]) -> list[str]:
    plain = {(row["model"], row["way"]): row["images_per_s"] for row in _measured(results, "speed_")}
    rows = []
    for row in [*_measured(results, "speed_"), *_measured(results, "deterministic")]:
        ratio = None
        if row["way"].startswith("deterministic_"):
            other = plain.get((row["model"], row["way"].removeprefix("deterministic_")))
            ratio = other and round(row["images_per_s"] / other, 2)
        keys = ("model", "way", "batch", "images_per_s", "step_ms", "kernels", "roofline_ms", "roofline_share")
        rows.append([*(row.get(k) for k in keys), row.get("memory_mb"), ratio])
    head = (
        "model | way | batch | images/s | step, ms | kernels | at the peaks, ms | share of it | peak, MB | of plain"
    )
    return _lines(head, rows)


def _measured(results: dict[str, Result], prefix: str) -> list[dict[str, Any]]:
    return [row for n, r in results.items() if n.startswith(prefix) for row in r.get("rows", []) if "way" in row]


def _others(results: dict[str, Result]) -> list[str]:
    names = ("packed", "train_")
    rows = [
        (n, row["case"], _numbers(row))
        for n, r in results.items()
        if n.startswith(names)
        for row in r.get("rows", [])
    ]
    return _lines("part | case | found", rows)


def table(results: dict[str, Result]) -> str:
    """Markdown: how the parts have ended, claims, speeds, trainings. results: by part, {} of one that has not run."""
    run = {name: r for name, r in results.items() if r}
    cards = sorted({f"{r['card']}, torch {r['torch']}, {r['date']}" for r in run.values()})
    tiny = " (tiny: no measurement)" if any(r["tiny"] for r in run.values()) else ""
    ended = [(n, r["state"] if r else "not run", r.get("why"), r.get("seconds")) for n, r in results.items()]
    lines = [f"# {'; '.join(cards)}{tiny}", *_lines("part | state | why | s", ended)]
    return "\n".join([*lines, *_claims(run), *_speeds(run), *_others(run)]) + "\n"
