"""What follows the end of a run's processes: which ends are worth another start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from launch.job import _stuck
from launch.requeue import Attempt, outcome
from launch.slurm import own_job
from tests.launch.support import ROOT

OUTSIDE = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}


def supervised(script: str) -> subprocess.Popen[str]:
    """A shell script under launch.requeue, outside any job."""
    command = [sys.executable, "-m", "launch.requeue", "bash", "-c", script]
    return subprocess.Popen(command, cwd=ROOT, env=OUTSIDE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("exit 75", 75)])
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    assert supervised(script).wait(30) == code


def test_a_request_to_stop_reaches_the_command() -> None:
    process = supervised("trap 'exit 75' TERM; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75


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


def test_a_run_that_is_killed_at_the_same_step_is_given_up() -> None:
    at = [{"how": "killed", "step": s} for s in (4, 7, 7, 7)]
    assert not _stuck(at[:3]) and _stuck(at)
    assert not _stuck([*at[:3], {"how": "stopped", "step": 7}])
    assert _stuck([{"how": "stopped", "step": 7}] * 10)
