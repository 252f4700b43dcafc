"""The hours that a run has taken. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

# What environment.json may call a CPU: platform.processor(), or "cpu" where that says nothing.
CPUS = ("cpu", "x86_64", "amd64", "i386", "i686", "aarch64", "arm64", "arm", "ppc64le", "riscv64", "s390x")

Line = dict[str, Any]


def on_cpu(environment: Line) -> bool:
    """Whether a run whose environment.json this is was on a CPU."""
    return str(environment.get("device")).lower() in CPUS


def hours(lines: list[Line], environment: Line) -> tuple[str, float]:
    """core-hours or GPU-hours of all processes together, from each start to the last line of its training.

    lines: of metrics.jsonl. environment: environment.json. Evaluations and saves in between are in it; what
    comes at the end, the time that a run lay still between two starts and steps that a restart has run again are not.
    """
    cpu = on_cpu(environment)
    threads = _whole(environment.get("threads")) if cpu else 1
    total = 0.0
    for start, stretch in _starts(lines):
        size = _whole(start.get("world_size", environment.get("world_size")))
        total += size * threads * sum(b - a for a, b in pairwise(stretch))
    return ("core-hours" if cpu else "GPU-hours"), total / 3600


def _starts(lines: Iterable[Line]) -> Iterator[tuple[Line, list[float]]]:
    """Each start of the run's processes with the times of its own line, where it has one, and of its training's."""
    start: Line = {}
    times: list[float] = []
    for line in lines:
        if line.get("kind") == "start":
            yield start, times
            start, times = line, []
        if line.get("kind") in ("start", "train") and isinstance(line.get("time"), int | float):
            times.append(float(line["time"]))
    yield start, times


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
