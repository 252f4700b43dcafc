"""A command killed while it submits: given again, it runs each point once; what it started can be cancelled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtrain.config import ConfigError
from launch import local, slurm, submit
from launch.store import Submission, SweepFolder
from tests.launch.bench import Bench, bench, still
from tests.launch.support import until

__all__ = ["bench", "still"]


class Killed(BaseException):
    """In the place of SIGKILL: nothing catches it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> pytest.MonkeyPatch:
    """Raises Killed once the call-th call of owner.name has returned."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def then_killed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        value = real(*args, **options)
        if calls == call:
            raise Killed
        return value

    monkeypatch.setattr(owner, name, then_killed)
    return monkeypatch


STEPS = {
    "the folder was made": (SweepFolder, "new_submission", 1),
    "the first configuration was named": (Submission, "config", 1),
    "the last configuration was named": (Submission, "config", 3),
    "the code was copied": (submit, "snapshot", 1),
    "the submission was written": (Submission, "write", 1),
    "one owner was written": (submit, "_own", 1),
    "all owners were written": (submit, "_own", 3),
    "the scheduler was started": (local, "start", 1),
    "the scheduler was noted": (Submission, "write", 2),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_command_killed_at_any_step_and_given_again_runs_each_point_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str, int]
) -> None:
    bench.seconds = 1.5
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, *step)
        bench.sweep()
    started = step[0] is local or step[2] == 2
    assert f"submitted {0 if started else 3} points" in bench.sweep()
    assert bench.finish() == [1, 1, 1]
    assert "submitted 0 points" in bench.sweep()


def test_what_a_killed_command_has_started_can_be_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.seconds = 600
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, local, "start", 1)
        bench.sweep()
    assert bench.submissions[0].job == ""
    until(lambda: all((bench.run(i) / "ran").exists() for i in range(3)), 120)
    assert "cancelled 3 points" in bench.jobs("cancel")
    until(lambda: set(bench.names()) == {"cancelled"}, 120, lambda: str(bench.states()))


class Queue:
    """In the place of SLURM's commands: the arrays 77, 78, … that are submitted, whose tasks wait."""

    def __init__(self) -> None:
        self.size = 1001
        self.scripts: list[str] = []
        self.tasks: list[list[int]] = []
        self.cancelled: list[str] = []

    def __call__(self, *command: str) -> list[list[str]] | None:
        if command[0] == "scancel":
            self.cancelled += command[1:]
            return []
        if command[0] == "scontrol":
            return [["MaxArraySize            = " + str(self.size)]]
        if command[-1] == "--format=%F|%o":
            return [[str(77 + n), script] for n, script in enumerate(self.scripts)]
        return [[str(77 + n), str(t), "PENDING", "None"] for n, tasks in enumerate(self.tasks) for t in tasks]


@pytest.fixture
def queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Queue:
    found = Queue()

    class Executor:
        def __init__(self, path: Path, *_: Any) -> None:
            self.path = path

        def submit_tasks(self, _: Any, tasks: list[int], *rest: Any) -> str:
            found.scripts.append(f"{self.path}/.submission_file_1.sh")
            found.tasks.append(tasks)
            return str(76 + len(found.tasks))

    bench.settings.sweep.where = "slurm"
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "_ask", found)
    monkeypatch.setattr(slurm, "ArrayExecutor", Executor)
    return found


@pytest.mark.parametrize("size", [1001, 2])
@pytest.mark.parametrize("step", [(submit, "_own", 3), (Submission, "started_as", 1), (Submission, "write", 2)])
def test_arrays_whose_ids_nobody_has_lived_to_note_are_found(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str, int], size: int
) -> None:
    queue.size = size
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, *step)
        bench.sweep()
    if not queue.scripts:  # sbatch may still be on its way, for a minute
        assert "submitted 0 points" in bench.sweep() and set(bench.names()) == {"pending"}
        bench.age(bench.submissions[0], 61)
        assert set(bench.names()) == {"lost"} and "submitted 3 points" in bench.sweep()
    assert "submitted 0 points" in bench.sweep()
    bench.jobs("cancel")
    assert bench.submissions[-1].job == ("77" if size == 1001 else "77 78+2")
    assert queue.cancelled == ["77_0", "77_1", "77_2" if size == 1001 else "78_0"]


def test_of_arrays_that_are_refused_none_is_left(bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.size = 1
    submit_tasks = slurm.ArrayExecutor.submit_tasks

    def refuse(*arguments: Any) -> str:
        if len(queue.tasks) == 2:
            raise ConfigError("no")
        return submit_tasks(*arguments)

    monkeypatch.setattr(slurm.ArrayExecutor, "submit_tasks", refuse)
    with pytest.raises(ConfigError):
        bench.sweep()
    assert queue.cancelled == ["77", "78"] and set(bench.names()) == {"missing"}


def test_a_job_notes_its_arrays_id(bench: Bench, queue: Queue) -> None:
    bench.sweep()
    submission = replace(bench.submissions[0], job="")
    submission.write()
    assert submission.started_as("77").job == bench.submissions[0].job == "77"
    assert submission.started_as("") == submission


def test_a_refused_submission_leaves_the_owners_as_they_were(still: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("no")

    before = (still.run(2) / "owner.json").read_text()
    shutil.rmtree(still.run(1))
    with monkeypatch.context() as patch, pytest.raises(ConfigError):
        patch.setattr(local, "start", refuse)
        still.sweep()
    assert (still.run(2) / "owner.json").read_text() == before and not still.run(1).exists()
    assert [s.path.name for s in still.submissions] == ["1"] and still.names()[2] == "failed"
