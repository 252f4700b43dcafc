"""python -m launch.requeue COMMAND …: a job's command, started again by SLURM until it has come to its end.

Ends with the command's exit code, unless the command stopped on request (time limit, preemption) or was killed:
then it puts the job back into the queue, where the command continues from its latest checkpoint, at most
$DTRAIN_MAX_RESTARTS times (20).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from dtrain.files import LOST, STOPPED
from launch import slurm

GRACE = 60.0  # seconds that the other ranks may go on after one has ended badly
LOOK = 2.0  # seconds between two looks for a mark
_LIBC = ctypes.CDLL(None)


class Attempt:
    """One execution of a run: a process for each command.

    forward: pass requests to stop on to the processes. Not to srun: SLURM signals its tasks itself, and srun would
    pass on no more than a kill. A request may come at any moment, before the first process has started or while
    one ends: its handler only notes it, and wait() passes it on. The end of this very process, however it comes, is
    a request too, and so is cancelled(), once it is true. before: the attempt before this one, whose handler may
    have noted a request after it had ended.
    """

    def __init__(
        self,
        commands: list[list[str]],
        environments: list[Mapping[str, str]],
        forward: bool,
        cancelled: Callable[[], bool] | None = None,
        before: Attempt | None = None,
    ) -> None:
        self.asked = self.signalled = False
        self._forward, self._cancelled, self._looked = forward, cancelled, time.monotonic()
        self._undelivered = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._request)
        if before is not None and before.signalled:
            self.asked = self.signalled = self._undelivered = True
        self._processes = [
            subprocess.Popen(
                command, env={**os.environ, **extra}, start_new_session=True,
                preexec_fn=end_with_parent if forward else None,  # noqa: PLW1509 (there is no other thread)
            )
            for command, extra in zip(commands, environments, strict=True)
        ]  # fmt: skip

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.signalled = self._undelivered = True

    def _look(self, now: float) -> None:
        if self._cancelled is not None and not self.asked and now - self._looked >= LOOK:
            self._looked = now
            if self._cancelled():
                self.asked = self._undelivered = True

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)

    def wait(self) -> int:
        """The largest exit code, 128 + n for a process that signal n ended: what srun says of its tasks."""
        deadline = None
        while None in (codes := [p.poll() for p in self._processes]):
            self._look(time.monotonic())
            if self._undelivered and self._forward:
                self._undelivered = False
                self._signal(signal.SIGTERM)
            now = time.monotonic()
            if deadline is None and any(codes):
                deadline = now + GRACE
            if deadline is not None and now > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.1)
        return max(128 - code if code < 0 else code for code in codes if code is not None)


def step(ranks: int) -> list[str]:
    """The command that starts one rank as each task of this job, up to the interpreter's arguments."""
    command = ["srun", "--kill-on-bad-exit=0", f"--wait={GRACE:.0f}"]  # a minute for the others to save
    if "SLURM_CPUS_PER_TASK" in os.environ:  # srun does not take it over from sbatch since 22.05
        command.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
    return [*command, *(["--label"] if ranks > 1 else []), sys.executable, "-u"]


def end_with_parent() -> None:
    """A run whose job is killed is asked to stop too: nobody else could still do that."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        _LIBC.prctl(pr_set_pdeathsig, signal.SIGTERM)


def outcome(code: int, status: dict[str, Any]) -> str:
    """finished, paused, stopped (on request), killed (by a signal, or a rank lost its peers), or failed by itself."""
    if code == 0:
        return "paused" if status.get("state") == "paused" else "finished"
    # A request that comes before the run listens to it ends the process.
    if code in (STOPPED, 128 + signal.SIGTERM, 128 + signal.SIGUSR2):
        return "stopped"
    lost = status.get("state") == "failed" and str(status.get("error")).startswith("RanksMissing")
    return "killed" if code > 128 or code == LOST or lost else "failed"


def back_into_queue(how: str, limit: int) -> bool:
    """Requeues this job after an end by `how`, unless it was cancelled or has restarted `limit` times."""
    job, restarts = slurm.own_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if not slurm.still_wanted(job):
        say(f"{how}; SLURM has already decided what becomes of job {job}")
        return False
    if restarts >= limit:
        say(f"{how} after {restarts} restarts, the limit: job {job} is not requeued")
        return False
    say(f"{how}: requeueing job {job} (restart {restarts + 1} of at most {limit})")
    return slurm.requeue(job)


def say(message: str) -> None:
    """A line of the job's log that is not the run's own."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} launch: {message}", flush=True)


def main(command: list[str]) -> int:
    """Runs the command; returns its exit code."""
    on_slurm = "SLURM_JOB_ID" in os.environ
    code = Attempt([command], [{}], forward=not on_slurm).wait()
    how = outcome(code, {})
    if how in ("stopped", "killed") and on_slurm:
        back_into_queue(how, int(os.environ.get("DTRAIN_MAX_RESTARTS", "20")))
    return code


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
