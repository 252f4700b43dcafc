"""What follows the end of a run's processes: which ends are worth another start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain.files import STOPPED, write_json
from launch.again import stuck
from launch.job import run_point
from launch.requeue import Attempt, outcome
from launch.slurm import own_job
from launch.store import Submission
from tests.launch.support import ROOT

OUTSIDE = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}

HOLD = """
import sys, time
from pathlib import Path
from dtrain.files import locked

with locked(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(1)
"""


def supervised(script: str) -> subprocess.Popen[str]:
    """A shell script under launch.requeue, outside any job."""
    command = [sys.executable, "-m", "launch.requeue", "bash", "-c", script]
    return subprocess.Popen(command, cwd=ROOT, env=OUTSIDE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("exit 75", 75)])
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    assert supervised(script).wait(120) == code


def test_a_request_to_stop_reaches_the_command() -> None:
    process = supervised("trap 'exit 75' TERM; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    assert process.wait(120) == 75


def test_a_request_that_comes_while_the_command_starts_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = subprocess.Popen

    def asked_meanwhile(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = begin(*args, **options)
        signal.raise_signal(signal.SIGUSR2)
        return process

    monkeypatch.setattr(subprocess, "Popen", asked_meanwhile)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    try:
        attempt = Attempt([["sleep", "60"]], [{}], forward=True)
        assert attempt.wait() == 128 + signal.SIGTERM and attempt.asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("code", "status", "how"),
    [
        (0, {"state": "finished"}, "finished"),
        (75, {"state": "stopped"}, "stopped"),
        (140, {}, "stopped"),
        (143, {"state": "running"}, "stopped"),
        (137, {"state": "running"}, "killed"),
        (1, {"state": "failed", "error": "RanksMissing: a collective failed at step 3"}, "killed"),
        (1, {"state": "failed", "error": "NonFinite: loss"}, "failed"),
        (2, {}, "failed"),
    ],
)
def test_only_ends_from_outside_are_tried_again(code: int, status: dict[str, str], how: str) -> None:
    assert outcome(code, status) == how


def test_a_task_of_an_array_is_not_named_like_the_whole_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert own_job() == "100"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "100")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "24")
    assert own_job() == "100_24"


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """A point in its SLURM job, whose run stops at step 0 each time: it has to compile for longer than it may."""
    run = tmp_path / "run"
    write_json(tmp_path / "sweep.json", {"keys": [], "points": [
        {"index": 0, "values": {}, "signature": "s", "run": str(run)}
    ]})  # fmt: skip
    (tmp_path / "submissions" / "1" / "points").mkdir(parents=True)
    run.mkdir()
    write_json(run / "status.json", {"state": "stopped", "step": 0})
    monkeypatch.setattr("launch.job._ranks", lambda submission, index: ([["sh", "-c", f"exit {STOPPED}"]], [{}]))
    monkeypatch.setattr("launch.again.back_into_queue", lambda how, limit: True)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # this process keeps its own
    return Submission(tmp_path / "submissions" / "1", "slurm", [0], {}, "7", "", 1)


def counts(submission: Submission) -> tuple[int, int, int]:
    """Starts, ends, and returns into the queue."""
    events = [e["event"] for e in submission.events(0)]
    return events.count("start"), events.count("end"), events.count("requeue")


def test_stops_before_the_first_step_count(compiling: Submission, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(10):
        assert run_point(compiling, 0) == STOPPED
    assert counts(compiling) == (10, 10, 9)
    assert "stopped 10 times at step 0: given up" in capfd.readouterr().out
    # SLURM puts a preempted job back into the queue by itself.
    assert run_point(compiling, 0) == STOPPED
    assert counts(compiling) == (10, 10, 9)


def test_a_job_that_has_not_quite_let_go_of_the_run_is_waited_for(compiling: Submission) -> None:
    """Its run has paused already, so that the same command submits the point again."""
    lock = compiling.path.parents[1] / "run" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        assert run_point(compiling, 0) == STOPPED
    assert counts(compiling) == (1, 1, 1)


def test_a_job_that_slurm_ends_before_its_run_has_stopped_counts_as_stopped(
    compiling: Submission, capfd: pytest.CaptureFixture[str]
) -> None:
    """Preemption gives it KillWait seconds, then kills whatever there is, this program too."""
    for _ in range(9):
        compiling.add_event(0, "start")
        compiling.add_event(0, "end", how="stopped", step=0)
    compiling.add_event(0, "start")
    assert run_point(compiling, 0) == STOPPED
    assert counts(compiling) == (10, 10, 0)
    assert "stopped 10 times at step 0: given up" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("ends", "given_up"),
    [
        ([], False),
        ([("killed", 4), ("killed", 7), ("killed", 7)], False),
        ([("killed", 4), ("killed", 7), ("killed", 7), ("killed", 7)], True),
        ([("killed", 7), ("killed", 7), ("stopped", 7)], False),
        ([("stopped", 7)] * 9, False),
        ([("stopped", 7)] * 10, True),
        ([("failed", 7)] * 10, False),
    ],
)
def test_a_run_that_ends_at_the_same_step_again_and_again_is_given_up(
    compiling: Submission, ends: list[tuple[str, int]], given_up: bool
) -> None:
    for how, step in ends:
        compiling.add_event(0, "end", how=how, step=step)
    assert stuck(compiling, 0) == given_up
