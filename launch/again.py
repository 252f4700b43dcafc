"""What follows the end of a point's attempt: another one here, a place in SLURM's queue, or neither."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from launch.requeue import back_into_queue, say
from launch.settings import launcher_from
from launch.store import Submission, read_status

# How many ends in a row without a new step are no accident: a program that dies, a limit shorter than the start.
STUCK = {"killed": 3, "stopped": 10}
ORPHAN = 300.0  # seconds to wait for processes that a dead node's daemon left behind
# Seconds to wait for a job that holds a run: while the run says that it goes on, and once it has ended.
RUNNING, ENDING = 2.0, 15.0


def patience(run: Path, job: str, holder: str) -> float:
    """Seconds to wait for the lock of a run that another process holds, as this job or as another one.

    A requeued job may meet its own former self, orphaned by a dead slurmd: it waits for that one to end.
    """
    if holder == job:
        return ORPHAN
    return ENDING if read_status(run).get("state") in ("paused", "stopped", "failed", "finished") else RUNNING


def again(submission: Submission, index: int, how: str, asked: bool) -> bool:
    """Whether to start the point again here. A SLURM job of its own goes back into the queue instead.

    One that it shares does so once all its points have ended; what is killed before that starts again here.
    """
    if how not in ("stopped", "killed") or submission.cancelled(index).exists():
        return False
    if stuck(submission, index):
        return False
    limit = launcher_from(submission.launcher).max_num_timeout
    if submission.where == "slurm" and (submission.shared == 1 or how == "stopped" or asked):
        if submission.shared > 1 or back_into_queue(how, limit):
            submission.add_event(index, "requeue")
        return False
    return how == "killed" and not asked and len(_ends(submission, index)) <= limit


def note_unseen_end(submission: Submission, index: int, run: Path) -> None:
    """A start without an end: SLURM stopped the job and killed it, this program included, before the run was done."""
    if submission.last(index).get("event") == "start":
        submission.add_event(index, "end", how="stopped", step=read_status(run).get("step", 0))


def _ends(submission: Submission, index: int) -> list[tuple[str, int]]:
    """How the point has ended so far, and at which step, latest first."""
    ends = [(str(e.get("how")), e.get("step", 0)) for e in submission.events(index) if e.get("event") == "end"]
    return ends[::-1]


def stuck(submission: Submission, index: int) -> bool:
    """Whether the point is given up, because it has ended in the same way at the same step too often."""
    ends = _ends(submission, index)
    alike = len(list(itertools.takewhile(lambda end: end == ends[0], ends)))
    if not ends or alike < STUCK.get(ends[0][0], math.inf):
        return False
    how, step = ends[0]
    say(f"{how} {alike} times at step {step}: given up; see the log above, memory and time limits")
    return True
