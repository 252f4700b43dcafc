"""A submission's points as SLURM arrays: one, or, beyond the cluster's MaxArraySize, several with offsets.

Task t of the array with offset f is point f + t, in whose log it writes through a link in offset-<f>/. Where points
share a GPU, it is that point and those after it that share with it.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from dtrain.config import ConfigError
from launch import slurm
from launch.settings import Launcher, launcher_from
from launch.store import Submission


def submit(submission: Submission, launcher: Launcher, code: Path) -> str:
    """Submits all arrays; what Submission.job is then. Raises ConfigError with sbatch's words; then none is left."""
    parts = split(submission.leaders[:: submission.shared], slurm.largest_task() + 1)
    lanes = min(len(parts), launcher.array_parallelism)  # of arrays, each of which follows on the one before
    jobs: list[str] = []
    try:
        for number, (first, tasks) in enumerate(parts.items()):
            share = len(range(number % lanes, launcher.array_parallelism, lanes))
            after = f"afterany:{jobs[number - lanes]}" if number >= lanes else None
            own = launcher.public() | {"array_parallelism": share}
            if after:
                own["dependency"] = ",".join(filter(None, [launcher.dependency, after]))
            jobs.append(_submit(submission, launcher_from(own), first, tasks, code, alone=len(parts) == 1))
    except ConfigError:
        if jobs:
            slurm.cancel(*jobs)
        raise
    return _job(dict(zip(parts, jobs, strict=True)))


def split(indices: list[int], size: int) -> dict[int, list[int]]:
    """Offset -> tasks of the arrays, whose tasks are less than size. indices: ascending."""
    parts: dict[int, list[int]] = {}
    for index in indices:
        parts.setdefault(index // size * size, []).append(index % size)
    return parts


def find(submission: Path) -> str:
    """What Submission.job is, by the arrays that wait or run and whose script lies in its folder; '' if none does."""
    found = {}
    for job, script in slurm.scripts():
        if script.startswith(f"{submission}/"):
            offset = re.match(r"offset-([0-9]+)/", script.removeprefix(f"{submission}/"))
            found[int(offset[1]) if offset else 0] = job
    return _job(dict(sorted(found.items())))


def _submit(submission: Submission, launcher: Launcher, first: int, tasks: list[int], code: Path, alone: bool) -> str:
    shared = submission.shared > 1
    job = f"launch.{'shared task' if shared else 'job'} {shlex.quote(str(submission.path))}"
    if shared or not alone:
        job += f" $((SLURM_ARRAY_TASK_ID + {first}))"
    folder, log = submission.path, submission.log(first).with_name("%a.log")
    if first:
        folder = submission.path / f"offset-{first}"
        folder.mkdir()
        for task in tasks:
            (folder / f"{task}.log").symlink_to(os.path.relpath(submission.log(first + task), folder))
        log = folder / "%a.log"
    return slurm.ArrayExecutor(folder, launcher.max_num_timeout).submit_tasks(launcher, tasks, log, code, job)


def _job(arrays: dict[int, str]) -> str:
    return " ".join(f"{job}+{first}" if first else job for first, job in arrays.items())
