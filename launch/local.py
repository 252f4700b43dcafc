"""python -m launch.local SUBMISSION: a submission's points on this machine, some at a time, in the background."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from dtrain.config import ConfigError
from launch.settings import Launcher, launcher_from
from launch.store import Submission, fresh, touched

BEAT = 5.0  # seconds between two signs of life


def gpus() -> list[str]:
    """The GPUs that runs may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # As CUDA reads it: -1 ends the list.
        return list(itertools.takewhile(lambda g: g and not g.startswith("-"), visible.split(",")))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


def fitted(launcher: Launcher, devices: set[str]) -> Launcher:
    """With a GPU for each process where nothing else is asked for, this machine has GPUs, and a run may use one.

    devices: the runs' trainer.device.
    """
    asked = launcher.gpus_per_node is not None or launcher.gpus_per_task is not None
    if asked or devices <= {"cpu"} or not gpus():
        return launcher
    return launcher_from(launcher.public() | {"gpus_per_node": launcher.tasks})


def places(launcher: Launcher, parallel: int | None) -> int:
    """How many runs go on at a time. Raises ConfigError if this machine cannot hold one."""
    if launcher.nodes > 1:
        raise ConfigError(f"launcher.nodes={launcher.nodes}: there is no cluster here, and this machine is one node")
    have = len(gpus())
    if launcher.gpus > have:
        raise ConfigError(
            f"a run asks for {launcher.gpus} GPUs (launcher.gpus_per_node) and this machine has {have}; 0 takes none"
        )
    if launcher.gpus:
        fit = have // launcher.gpus * launcher.points_per_gpu
        return min(parallel or fit, fit)
    cores = launcher.ranks * (launcher.cpus_per_task or 1)
    return parallel or max(1, len(os.sched_getaffinity(0)) // cores)


def start(submission: Path, code: Path, log: Path) -> int:
    """Starts the scheduler, detached from this shell, and returns its process id, once others can find it by that."""
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "launch.local", str(submission)],
            env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    while _command(process.pid) == [b""] and process.poll() is None:  # its program is being loaded
        time.sleep(0.001)
    return process.pid


def alive(submission: Submission) -> bool:
    """Whether a submission's scheduler still runs: here by its process, on another machine by its sign of life."""
    if submission.host != platform.node():
        return fresh(max(touched(submission.path / name) for name in ("alive", "submission.json")))
    return _runs(submission.job, submission) if submission.job else _found(submission)


def _found(submission: Submission) -> bool:
    """Whether there is a scheduler that nobody has lived to note."""
    words = {b"launch.local", os.fsencode(submission.path)}
    return any(words <= set(_command(process.name)) for process in Path("/proc").glob("[0-9]*"))


def _command(pid: int | str) -> list[bytes]:
    """The words of a process, which are lost once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


class Scheduler:
    """Runs the points of a submission in order, `parallel` at a time, each with the GPUs that are used the least."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        launcher = launcher_from(submission.launcher)
        devices, each = gpus(), launcher.gpus
        self.uses_gpus = each > 0
        sets = [devices[i : i + each] for i in range(0, len(devices) - each + 1, each)] if each else [[]]
        # A place for each run at a time, over all sets of GPUs in turn.
        self.free = list(itertools.islice(itertools.cycle(sets), submission.parallel))
        self.running: dict[subprocess.Popen[bytes], tuple[int, list[str]]] = {}
        self.beaten = -BEAT
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        for process in self.running:
            process.terminate()

    def run(self) -> None:
        """Returns when every point has ended, or, asked to stop, when the running ones have saved."""
        waiting = self.submission.leaders
        while self.running or (waiting and not self.stopping):
            while waiting and self.free and not self.stopping:
                self._start(waiting.pop(0))
            self._beat()
            time.sleep(0.1)
            for process in [p for p in self.running if p.poll() is not None]:
                self._end(process)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self.beaten >= BEAT:
            self.beaten = now
            with contextlib.suppress(OSError):
                (self.submission.path / "alive").touch()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Frees the place, and says how the point ended where it could not do that itself."""
        index, devices = self.running.pop(process)
        self.free.append(devices)
        code = process.returncode
        for i in self.submission.pack(index):
            event = self.submission.last(i).get("event")
            if code and event != "end" and not (event is None and self.submission.cancelled(i).exists()):
                self.submission.add_event(i, "end", how="killed" if code < 0 else "failed", code=code, step=0)

    def _start(self, index: int) -> None:
        if all(self.submission.cancelled(i).exists() for i in self.submission.pack(index)):
            return
        devices = max(self.free, key=self.free.count)
        self.free.remove(devices)
        environment = dict(os.environ)
        if self.uses_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        with self.submission.log(index).open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "launch.job", str(self.submission.path), str(index)],
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.running[process] = (index, devices)


def cancel(submission: Submission, indices: list[int]) -> None:
    """Stops points after they have saved. Their cancelled marks, set before, keep waiting ones from starting.

    On another machine the points see their marks themselves, within seconds; so does a pack of which others go on.
    """
    whole = (i for i in indices if all(submission.cancelled(k).exists() for k in submission.pack(i)))
    for index in whole if submission.host == platform.node() else []:
        last = submission.last(index)
        pid = str(last.get("job", "")).removeprefix("pid ")
        if last.get("event") == "start" and _runs(pid, submission):
            os.kill(int(pid), signal.SIGTERM)


def _runs(pid: str, submission: Submission) -> bool:
    """Whether this process is the submission's scheduler, or one of its points."""
    return pid.isdecimal() and os.fsencode(submission.path) in _command(pid)


def main(submission: Submission) -> None:
    """Runs all points; then, where a sweep is halved, the judge, who submits the next rung."""
    scheduler = Scheduler(submission)
    scheduler.run()
    sweep = submission.path.parents[1]
    if not scheduler.stopping and (sweep / "halving.json").exists():
        subprocess.run([sys.executable, "-u", "-m", "launch.judge", str(sweep)], check=False)


if __name__ == "__main__":
    main(Submission.open(Path(sys.argv[1])))
