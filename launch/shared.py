"""python -m launch.shared task|step|point SUBMISSION INDEX …: points that share the GPU of one SLURM task.

The task's job starts one step, which SLURM's signals reach; the step starts a process for each point and passes them
on, and each saves. A point that ends does not end the others. When all have ended, the job goes back into the queue
if any of them has to go on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.job import run_point
from launch.requeue import Attempt, back_into_queue, end_with_parent, say, step
from launch.settings import launcher_from
from launch.store import Submission


def run_task(submission: Submission, points: list[int]) -> int:
    """Runs the points that are not over in a step, and requeues the job where one has to go on. The exit code."""
    left = [i for i in points if not submission.over(i)]
    if not left:
        say("cancelled, or over: nothing to do")
        return 0
    program = ["-m", "launch.shared", "step", str(submission.path), *map(str, left)]
    code = Attempt([[*step(1), *program]], [{}], forward=False).wait()
    if any(not submission.over(i) for i in left):  # it asks for a requeue, or was killed with the step
        back_into_queue("stopped", launcher_from(submission.launcher).max_num_timeout)
    return code


def run_together(submission: Submission, points: list[int]) -> int:
    """Runs points at the same time, each with its own log, until all have ended. Returns the largest exit code."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda number, _: asked.append(number))
    processes = {index: _start(submission, index) for index in points}
    running, passed_on = dict(processes), 0
    while running:
        if len(asked) > passed_on:
            passed_on = len(asked)
            for process in running.values():
                process.terminate()
        time.sleep(0.1)
        for index in [i for i, process in running.items() if process.poll() is not None]:
            _note_end(submission, index, running.pop(index).returncode, bool(asked))
    return max(abs(process.returncode) for process in processes.values())


def _start(submission: Submission, index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", "launch.shared", "point", str(submission.path), str(index)]
    with submission.log(index).open("a") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (there is no other thread)
        )  # fmt: skip


def _note_end(submission: Submission, index: int, code: int, asked: bool) -> None:
    """Says how a point's process ended where it could not do that itself."""
    if code and submission.last(index).get("event") != "end":
        how = "stopped" if asked else "killed" if code < 0 else "failed"
        submission.add_event(index, "end", how=how, code=code, step=0)
        if asked:
            submission.add_event(index, "requeue")


if __name__ == "__main__":
    what, folder, *words = sys.argv[1:]
    opened, indices = Submission.open(Path(folder)), list(map(int, words))
    if what == "task":
        sys.exit(run_task(opened, opened.together(indices[0])))
    if what == "step":
        sys.exit(run_together(opened, indices))
    sys.exit(run_point(opened, indices[0]))
