"""python -m launch.job SUBMISSION [INDEX]: one point of a sweep, in its SLURM job or on this machine.

Holds the run's folder while it runs, starts one process for each rank, and decides what follows its end.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from dtrain.files import STOPPED, held, read_json
from launch.again import again, note_unseen_end, patience, stuck
from launch.packs import run_pack
from launch.requeue import Attempt, outcome, say, step
from launch.settings import launcher_from
from launch.store import Submission, SweepFolder, read_status


def run_point(submission: Submission, index: int) -> int:
    """Runs a point until it is finished, stopped, failed, or handed back to SLURM. Returns the exit code."""
    if len(pack := submission.pack(index)) > 1:
        return run_pack(submission, pack)
    if submission.cancelled(index).exists():
        say("cancelled: nothing to do")
        return 0
    entry = SweepFolder.open(submission.path.parents[1]).points[index]
    job = os.environ.get("SLURM_JOB_ID", f"pid {os.getpid()}")
    with held(entry.run / "lock", job, functools.partial(patience, entry.run, job)) as holder:
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
        return [[*step(launcher.ranks), *program]], [launcher.threads()]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": str(launcher.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= launcher.threads()
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), **world} for r in range(launcher.ranks)]
    return [[sys.executable, "-u", *program] for _ in ranks], list(ranks)


if __name__ == "__main__":
    folder = Submission.open(Path(sys.argv[1]))
    if not folder.job and len(sys.argv) == 2:  # whoever submitted its one array did not live to note it
        folder = folder.started_as(os.environ.get("SLURM_ARRAY_JOB_ID", ""))
    sys.exit(run_point(folder, int(sys.argv[2] if len(sys.argv) > 2 else os.environ["SLURM_ARRAY_TASK_ID"])))
