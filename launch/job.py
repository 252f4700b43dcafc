"""python -m launch.job SUBMISSION [INDEX]: one point of a sweep, in its SLURM job or on this machine.

Holds the run's folder while it runs, starts one process for each rank, and decides what follows its end.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from dtrain.files import STOPPED, held, read_json
from launch.requeue import GRACE, Attempt, back_into_queue, outcome, say
from launch.settings import Launcher, launcher_from
from launch.store import Submission, SweepFolder, read_status

# How many ends in a row without a new step are no accident: a program that dies, a limit shorter than the start.
STUCK = {"killed": 3, "stopped": 10}
ORPHAN = 300.0  # seconds to wait for processes that a dead node's daemon left behind


def run_point(submission: Submission, index: int) -> int:
    """Runs a point until it is finished, stopped, failed, or handed back to SLURM. Returns the exit code."""
    if len(pack := submission.pack(index)) > 1:
        from launch.packs import run_pack

        return run_pack(submission, pack)
    if submission.cancelled(index).exists():
        say("cancelled: nothing to do")
        return 0
    entry = SweepFolder.open(submission.path.parents[1]).points[index]
    job = os.environ.get("SLURM_JOB_ID", f"pid {os.getpid()}")
    # A requeued job may meet its own former self, orphaned by a dead slurmd: it waits for that one to end.
    with held(entry.run / "lock", job, lambda holder: ORPHAN if holder == job else 0.0) as holder:
        if holder is not None:
            say(f"{entry.run} is being run by job {holder}: nothing to do")
            submission.add_event(index, "elsewhere", job=job, by=holder)
            return 0
        note_unseen_end(submission, index, entry.run)
        if stuck(submission, index):  # SLURM requeues a preempted job without asking
            return STOPPED
        attempt = None
        while True:
            submission.add_event(index, "start", job=job, restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")))
            alone = submission.where == "slurm" and submission.shared == 1  # the job is this point's
            marked = None if alone else functools.partial(_cancelled, submission, index, entry.run)
            attempt = Attempt(*_ranks(submission, index), not alone, marked, attempt)
            code = attempt.wait()
            status = read_status(entry.run)
            how = outcome(code, status)
            submission.add_event(index, "end", job=job, how=how, code=code, step=status.get("step", 0))
            if not again(submission, index, how, attempt.asked):
                return code


def _cancelled(submission: Submission, index: int, run: Path) -> bool:
    """Whether the point was cancelled, or, if another submission has taken on the run since, that one's point was."""
    owner = read_json(run / "owner.json")
    theirs = Path(str(owner.get("submission", submission.path)), "points", f"{owner.get('index', index)}.cancelled")
    return submission.cancelled(index).exists() or os.path.exists(theirs)  # False for a damaged path too


def _ranks(submission: Submission, index: int) -> tuple[list[list[str]], list[Mapping[str, str]]]:
    """The commands to start and their environments: srun's tasks, or this machine's processes."""
    launcher = launcher_from(submission.launcher)
    program = ["-m", "dtrain", "--config", str(submission.config(index))]
    if submission.where == "slurm" and submission.shared == 1:
        return [[*step(launcher.ranks), *program]], [threads(launcher)]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": str(launcher.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= threads(launcher)
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), **world} for r in range(launcher.ranks)]
    return [[sys.executable, "-u", *program] for _ in ranks], list(ranks)


def threads(launcher: Launcher) -> dict[str, str]:
    """What a rank's environment says of its threads."""
    cores = max(1, (launcher.cpus_per_task or 1) // launcher.points_per_gpu)
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(cores)}


def step(ranks: int) -> list[str]:
    """The command that starts one rank as each task of this job, up to the interpreter's arguments."""
    command = ["srun", "--kill-on-bad-exit=0", f"--wait={GRACE:.0f}"]  # a minute for the others to save
    if "SLURM_CPUS_PER_TASK" in os.environ:  # srun does not take it over from sbatch since 22.05
        command.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
    return [*command, *(["--label"] if ranks > 1 else []), sys.executable, "-u"]


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


if __name__ == "__main__":
    folder = Submission.open(Path(sys.argv[1]))
    if not folder.job and len(sys.argv) == 2:  # whoever submitted its one array did not live to note it
        folder = folder.started_as(os.environ.get("SLURM_ARRAY_JOB_ID", ""))
    sys.exit(run_point(folder, int(sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_ARRAY_TASK_ID"])))
