"""Sweeps of runs that only say that they ran: what the launcher does to them takes no training."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from dtrain.compose import compose, read
from dtrain.config import Config, RunConfig
from launch import jobs, local, submit, sweep
from launch.points import Point
from launch.settings import Launcher, Settings, Sweep
from launch.standing import State, states
from launch.store import ROOT, Submission, SweepFolder
from tests.launch.support import until

# In the place of python -m dtrain --config FILE, whose file holds the run's folder and seconds to take.
TRAINING = """
import json, sys, time
from pathlib import Path
folder, seconds = Path(sys.argv[-1]).read_text().split("\\n")
with (Path(folder) / "ran").open("a") as f:
    f.write("once\\n")
time.sleep(float(seconds))
status = {"state": "finished", "time": time.time(), "step": 1, "max_steps": 1}
(Path(folder) / "status.json").write_text(json.dumps(status))
"""
NOBODY = str(2**22 + 1)  # the id of no process


@functools.cache
def _config() -> Config:
    return read(compose([]))


class Bench:
    """Three points of a sweep in a folder. seconds: that a run takes."""

    training = TRAINING

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.seconds = path, 0.0
        self.settings = Settings(
            Launcher(cpus_per_task=1), Sweep(dir=str(path / "sweeps"), where="local", parallel=3)
        )
        self.values: list[Any] = [0, 1, 2]
        monkeypatch.setenv("PATH", str(path / "bin"))  # no SLURM
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr(sweep, "make_points", lambda *_: (self.points(), 0))
        monkeypatch.setattr(submit, "snapshot", lambda _: self._code())

    def points(self) -> list[Point]:
        """What the command line describes."""
        made = []
        for i, value in enumerate(self.values):
            config = _config().model_copy(update={"run": RunConfig(name=f"run-{i}", root=self.path / "runs")})
            made.append(
                Point({"key": value}, config, f"{self.path / 'runs' / f'run-{i}'}\n{self.seconds}", str(i) * 10)
            )
        return made

    def _code(self) -> Path:
        code = self.path / "code"
        if not code.exists():
            (code / "dtrain").mkdir(parents=True)
            for file in (ROOT / "dtrain").glob("*.py"):
                (code / "dtrain" / file.name).symlink_to(file)
            (code / "dtrain" / "__main__.py").unlink()
            (code / "dtrain" / "__main__.py").write_text(self.training)
            (code / "launch").symlink_to(ROOT / "launch")
        return code

    def sweep(self) -> str:
        """The sweep's command; what it prints."""
        with redirect_stdout(StringIO()) as printed:
            assert sweep.run(self.settings, []) == 0
        return printed.getvalue()

    def jobs(self, *arguments: str, check: int | None = 0) -> str:
        """launch/jobs.py COMMAND on this sweep; what it prints. check: its exit code, None for any."""
        command, *rest = arguments
        with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
            code = jobs.main([command, self.folder.name, *rest, "--dir", str(self.path / "sweeps")])
        assert check in (code, None), printed.getvalue()
        return printed.getvalue()

    @property
    def folder(self) -> Path:
        return next((self.path / "sweeps").glob("run-*/sweep.json")).parent

    @property
    def submissions(self) -> list[Submission]:
        return SweepFolder.open(self.folder).submissions()

    def states(self) -> list[State]:
        return states(SweepFolder.open(self.folder).points)

    def names(self) -> list[str]:
        return [s.name for s in self.states()]

    def run(self, index: int) -> Path:
        return self.path / "runs" / f"run-{index}"

    def status(self, index: int, **content: Any) -> None:
        """Writes a run's status.json."""
        (self.run(index) / "status.json").write_text(json.dumps(content))

    def finish(self) -> list[int]:
        """Waits until all have finished, and no scheduler is left; how often each ran."""
        until(lambda: set(self.names()) == {"finished"}, 120, lambda: str(self.states()))
        until(lambda: not any(local.alive(s) for s in self.submissions), 120)
        return [(self.run(i) / "ran").read_text().count("once") for i in range(len(self.values))]

    def end(self) -> None:
        """Ends every process of the sweep, and waits for it."""
        for submission in self.submissions if (self.path / "sweeps").exists() else []:
            for index in submission.indices:
                submission.cancelled(index).touch()
            until(lambda s=submission: not local._found(s), 120)

    def age(self, submission: Submission, seconds: float) -> None:
        """Sets back the times of the submission's signs of life."""
        for name in ("submission.json", "alive"):
            (submission.path / name).touch()
            os.utime(submission.path / name, (time.time() - seconds,) * 2)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A sweep whose processes are ended with the test."""
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.end()


@pytest.fixture
def still(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A sweep that was submitted and whose scheduler was killed: 0 and 1 finished, 2 failed."""
    monkeypatch.setattr(local, "start", lambda *_: NOBODY)
    bench.sweep()
    for index in (0, 1):
        bench.status(index, state="finished", step=1, max_steps=1, time=time.time())
    bench.status(2, state="failed", error="NonFinite", step=1, max_steps=2, time=time.time(), loss=0.5)
    submission = bench.submissions[0]
    submission.add_event(2, "start", job="pid 1")
    submission.add_event(2, "end", how="failed", code=1, step=1)
    return bench
