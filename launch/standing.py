"""Where each point of a sweep stands: from its run's heartbeat first, then the queue, then the accounts."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dtrain.config import ConfigError
from dtrain.files import locked, read_json
from dtrain.source import codes
from launch import arrays, local, slurm
from launch.store import Entry, Submission, fresh, read_status, touched

SUBMITTING = 60.0  # seconds that sbatch may take to say which job it has made
ACTIVE = ("pending", "starting", "running")


@dataclass(frozen=True)
class Owner:
    """The submission that last took on a run, maybe another sweep's, and the run's index there."""

    submission: Submission
    index: int

    @property
    def log(self) -> Path:
        """What the run's jobs printed."""
        return self.submission.log(self.index)

    def tail(self, lines: int) -> list[str]:
        """The last lines of the log, as far as they have 1 KiB on average; [] if there is none."""
        try:
            with self.log.open("rb") as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - 1024 * lines))
                return f.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []


@dataclass(frozen=True)
class State:
    """One point's state. note: why it waits or failed.

    name: one of ACTIVE, or finished, paused (at a rung of a halving), failed, cancelled, stopped, lost (ended
    unnoticed), missing (never submitted).
    """

    entry: Entry
    name: str
    status: dict[str, Any]
    owner: Owner | None
    note: str = ""

    @property
    def restarts(self) -> int:
        """Starts after the first, by the run's heartbeat."""
        return max(0, self.status.get("starts", 1) - 1)

    @property
    def hours(self) -> float | None:
        """By the clock, of all starts together; None before the first heartbeat."""
        seconds = self.status.get("seconds")
        return None if seconds is None else seconds / 3600

    @property
    def code(self) -> str:
        """The hash of the code that made it what it is, a+b where b has continued a's; "" before it has begun."""
        return "+".join(codes(self.entry.run)) if self.status else ""


def states(points: Iterable[Entry]) -> list[State]:
    """The state of every point now."""
    opened: dict[Path, Submission | None] = {}
    owners: list[tuple[Entry, Owner | None]] = []
    for entry in points:
        claim = read_json(entry.run / "owner.json")
        path, index = Path(str(claim.get("submission", "damaged"))), claim.get("index")
        if claim and path not in opened:
            opened[path] = _submission(path)
        submission = opened.get(path)
        owners.append((entry, Owner(submission, index) if submission and index in submission.indices else None))
    live = _Live([s for s in opened.values() if s])
    return [_state(entry, owner, live) for entry, owner in owners]


def _submission(path: Path) -> Submission | None:
    """The submission of a folder, if it can be read. A job that nobody has lived to note is looked for."""
    with contextlib.suppress(ConfigError):
        submission = Submission.open(path)
        if submission.where == "slurm" and not submission.job:
            with locked(path.parents[2] / "lock", wait=False) as idle:  # else it is being submitted, array by array
                found, submission = arrays.find(path), Submission.open(path)
                if not submission.job:
                    submission = submission.started_as(found) if idle else replace(submission, job=found)
        return submission
    return None


class _Live:
    """squeue, sacct and this machine's schedulers; each is asked once, and only if needed."""

    def __init__(self, submissions: list[Submission]) -> None:
        self._submissions = submissions

    @cached_property
    def _queue(self) -> dict[tuple[str, int], tuple[str, str]] | None:
        return slurm.queue()

    @cached_property
    def _accounts(self) -> dict[tuple[str, int], str]:
        return slurm.accounting([job for s in self._submissions if s.where == "slurm" for job, _ in s.arrays])

    @cached_property
    def _alive(self) -> dict[Path, bool]:
        return {s.path: local.alive(s) for s in self._submissions if s.where == "local"}

    def queued(self, owner: Owner) -> tuple[str, str] | None:
        """(SLURM's state, its reason) of a point that waits or runs; None if it does neither."""
        last = owner.submission.last(owner.index).get("event")
        cancelled = owner.submission.cancelled(owner.index).exists()
        if owner.submission.where == "local":
            ended = last == "end" or (cancelled and last is None)
            if not self._alive[owner.submission.path] or ended:
                return None
            return ("RUNNING" if last else "PENDING", "")
        if not owner.submission.job:
            young = fresh(touched(owner.submission.path / "submission.json"), SUBMITTING)
            return ("PENDING", "being submitted") if young and not cancelled else None
        if self._queue is None:  # a job that starts later looks at the mark itself
            return ("PENDING", "squeue does not answer") if last != "end" and not cancelled else None
        found = self._queue.get(owner.submission.task(owner.index))
        # Its task may go on with other points.
        several = len(owner.submission.together(owner.index)) > 1
        over = owner.submission.over(owner.index) if several else last == "end"
        return None if over and found and (found[0] == "COMPLETING" or several) else found

    def account(self, owner: Owner) -> str | None:
        """The last state that SLURM's accounting knows."""
        on_slurm = owner.submission.where == "slurm"
        return self._accounts.get(owner.submission.task(owner.index)) if on_slurm else None


def _state(entry: Entry, owner: Owner | None, live: _Live) -> State:
    status = read_status(entry.run)
    own = status.get("state")
    if own == "finished" or (own == "running" and fresh(status.get("time", 0.0))):
        return State(entry, own, status, owner)
    left = owner is not None and _left(owner, status)
    queued = live.queued(owner) if owner and not left else None
    if queued:
        state, reason = queued
        if state == "PENDING":
            return State(entry, "pending", status, owner, "" if reason == "None" else reason)
        return State(entry, "running" if own == "running" else "starting", status, owner)
    if owner is None:
        return State(
            entry, {"running": "lost", None: "missing"}.get(own, str(own)), status, owner, _error(status, None)
        )
    name = _ended(owner, status, live)
    return State(entry, name, status, owner, _error(status, owner) if name in ("failed", "lost") else "")


def _left(owner: Owner, status: dict[str, Any]) -> bool:
    """Whether a point has failed or paused since its pack began, which may go on without it."""
    if len(owner.submission.pack(owner.index)) == 1 or status.get("state") not in ("failed", "paused"):
        return False
    return float(owner.submission.last(owner.index).get("time", math.inf)) < status.get("time", 0.0)


def _ended(owner: Owner, status: dict[str, Any], live: _Live) -> str:
    """What became of a point that is neither finished nor in a queue."""
    own = status.get("state")
    if owner.submission.cancelled(owner.index).exists():
        return "cancelled"
    if owner.submission.last(owner.index).get("how") in ("failed", "killed"):
        return "failed"
    account = live.account(owner)
    if account == "CANCELLED":
        return "cancelled"
    if own in ("stopped", "paused") or (own == "failed" and _left(owner, status)):
        return own
    return "lost" if account in (None, "COMPLETED") else "failed"


def _error(status: dict[str, Any], owner: Owner | None) -> str:
    """The run's own words, else the last line of its log."""
    if status.get("error"):
        return str(status["error"])
    lines = [line for line in owner.tail(100) if line.strip()] if owner else []
    return lines[-1].strip() if lines else ""
