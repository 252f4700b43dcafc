"""Successive halving of a sweep (Jamieson and Talwalkar 2016): all points run to a first rung, the best of them on.

A rung is a share of the steps. Runs pause there, evaluated, and go on as if they had not paused. Settings are judged
as by collect: seeds together. sweeps/<id>/halving.json keeps how, and what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dtrain.config import ConfigError
from dtrain.files import read_json, write_json
from dtrain.length import pause_step
from dtrain.results import evaluation_from, metrics_on
from launch import local, slurm
from launch.results import Row, check_metric, default_objective, grouped, without_seed
from launch.standing import ACTIVE, State
from launch.store import SweepFolder

OUT = ("failed", "cancelled")  # what a judgement does not wait for, and leaves out


@dataclass(frozen=True)
class Halving:
    """How a sweep is halved, and how far it has come.

    by: a setting of so many goes on. rungs: pauses before the end. objective: None until the first judgement, where
    nobody has chosen. judged: for each rung that was judged, the points that went on. halted: by jobs.py cancel.
    judge: on SLURM, the job that waits for the present rung.
    """

    by: int
    rungs: int
    objective: str | None = None
    judged: list[list[int]] = field(default_factory=list)
    halted: bool = False
    judge: str = ""

    @classmethod
    def open(cls, sweep: Path) -> Halving | None:
        """What halving.json of a sweep's folder says; None where there is none. Raises ConfigError."""
        file = sweep / "halving.json"
        if not file.exists():
            return None
        try:
            found = cls(**read_json(file))
            whole = found.by > 1 and found.rungs >= len(found.judged) and all(map(set, found.judged))
        except TypeError:
            whole = False
        if not whole:
            raise ConfigError(f"{file} is damaged: remove it, and the sweep's command judges anew")
        return found

    def write(self, sweep: Path) -> None:
        """Writes halving.json."""
        write_json(sweep / "halving.json", asdict(self))

    @property
    def share(self) -> float | None:
        """Of the steps, where the present rung pauses; None on the last, which runs to the end."""
        return self._share(len(self.judged))

    def _share(self, rung: int) -> float | None:
        return None if rung == self.rungs else float(self.by) ** (rung - self.rungs)

    def candidates(self, found: Iterable[State]) -> list[State]:
        """The points of the present rung."""
        on = set(self.judged[-1]) if self.judged else None
        return [s for s in found if on is None or s.entry.index in on]

    def open_points(self, found: Iterable[State]) -> list[State]:
        """The candidates that have not reached the present rung."""
        return [s for s in self.candidates(found) if not _reached(s, self.share)]

    def advanced(self, found: Sequence[State], out: tuple[str, ...] = ()) -> Halving:
        """After judging every rung that all candidates have reached, but for those in a state of `out`."""
        now = self
        while now.share is not None and all(s.name in out for s in now.open_points(found)):
            now = now._judged(found)
        return now

    def _judged(self, found: Sequence[State]) -> Halving:
        """One rung further. Raises ConfigError where nothing can be judged."""
        share = self.share
        assert share is not None
        rows = [_row(s, share) for s in self.candidates(found)]
        objective = self.objective or default_objective(rows)
        sizes: dict[Any, int] = {}
        for row in rows:
            key = tuple(without_seed(row).items())
            sizes[key] = sizes.get(key, 0) + 1
        # A seed that has failed, or a number that is none, takes its setting out.
        settings = [
            s for s in grouped(rows, objective)
            if len(s.rows) == sizes[tuple(s.values.items())] and math.isfinite(s.mean)
        ]  # fmt: skip
        if not settings:
            raise ConfigError(f"halving: no setting has a finite {objective} at {_fraction(share)} of the steps")
        best = settings[: -(-len(sizes) // self.by)]
        on = sorted(r.state.entry.index for s in best for r in s.rows)
        return replace(self, objective=objective, judged=[*self.judged, on])

    def rungs_of(self, settings: int) -> list[tuple[int, float | None]]:
        """(settings, the share they run to) of every rung, of so many in all."""
        found = []
        for rung in range(self.rungs + 1):
            found.append((settings, self._share(rung)))
            settings = -(-settings // self.by)
        return found

    def plan(self, found: Sequence[State]) -> str:
        """A line: how many settings run how far, and what that saves."""
        way = ", ".join(f"{n} to {_fraction(share)}" for n, share in self.rungs_of(_settings(found)))
        return f"halving by {self.by}: {way} of the steps, {part(self, found):.0%} of the grid's"

    def standing(self, found: Sequence[State], goes_on: bool) -> str:
        """A line: where it stands, for status. goes_on: without a command, see `waiting`."""
        now = self.candidates(found)
        there = len(now) - len(self.open_points(found))
        judged = f", judged by {self.objective}" if self.objective else ""
        said = f"halving by {self.by}: {there} of {len(now)} points have come to {_fraction(self.share)} of the steps"
        ended = self.share is None and not any(s.name in ACTIVE for s in now)
        return f"{said}{judged}" + ("" if goes_on or ended else "; the sweep's command continues it")


def part(halving: Halving | None, found: Sequence[State]) -> float:
    """The steps that are trained, of those of the whole grid."""
    if halving is None:
        return 1.0
    steps, before = 0.0, 0.0
    for count, share in halving.rungs_of(_settings(found)):
        steps += count * ((share or 1.0) - before)
        before = share or 1.0
    return steps / _settings(found)


def _settings(found: Iterable[State]) -> int:
    """How many there are, seeds together."""
    return len({tuple((k, v) for k, v in s.entry.values.items() if k != "seed") for s in found})


def settled(found: Halving | None, asked: Halving, sweep: Path) -> Halving:
    """What was begun before, going on if it was halted. ConfigError for another way than it was judged in."""
    if found is None or not found.judged:
        return asked
    if (found.by, found.rungs) != (asked.by, asked.rungs) or asked.objective not in (None, found.objective):
        raise ConfigError(
            f"sweep.halving={asked.by}: this sweep was halved by {found.by} with {found.rungs} rungs, judged by "
            f"{found.objective}; remove {sweep / 'halving.json'} to judge anew"
        )
    return replace(found, halted=False)


def asked_for(by: int, rungs: int, objective: str | None) -> Halving:
    """A new one. Raises ConfigError."""
    if by < 2:
        raise ConfigError(f"sweep.halving={by}: one of so many settings goes on: at least 2")
    if rungs < 1:
        raise ConfigError(f"sweep.rungs={rungs}: the number of pauses is at least 1")
    if objective is not None:
        check_metric("sweep.objective", objective)
    return Halving(by, rungs, objective)


def waiting(sweep: SweepFolder) -> bool:
    """Whether a judgement is under way, or will be without anybody's command."""
    found = Halving.open(sweep.path)
    if found is None or found.halted:
        return False
    # A scheduler lives until its judge has submitted what follows.
    if any(local.alive(s) for s in sweep.submissions() if s.where == "local"):
        return True
    return bool(found.judge) and slurm.waits(found.judge)


def _reached(state: State, share: float | None) -> bool:
    """Whether a point has paused there or further on, or is finished."""
    if state.name == "paused" and share is not None:
        return state.status.get("step", 0) >= pause_step(share, state.status.get("max_steps", 0))
    return state.name == "finished"


def _row(state: State, share: float) -> Row:
    """A point with its numbers at a rung, {} where it has failed."""
    if not _reached(state, share):
        return Row(state, {}, {})
    step = pause_step(share, state.status.get("max_steps", 0))
    return Row(state, metrics_on("valid", evaluation_from(state.entry.run, step)), {})


def _fraction(share: float | None) -> str:
    return "all" if share is None else f"1/{round(1 / share)}"
