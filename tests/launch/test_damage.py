"""A damaged file, a stray one, a host that is gone: one point's trouble each, and no point is lost or run twice."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtrain.files import append_line, read_json, read_lines
from launch import collect, local
from launch.requeue import Attempt
from launch.standing import State
from launch.store import Entry, SweepFolder
from tests.launch.bench import Bench, bench, still
from tests.launch.support import until

__all__ = ["bench", "still"]

FILES = {
    "status": "runs/run-2/status.json",
    "owner": "runs/run-2/owner.json",
    "metrics": "runs/run-2/metrics.jsonl",
    "submission": "sweeps/{id}/submissions/1/submission.json",
    "events": "sweeps/{id}/submissions/1/points/2.events",
}
WRONG = {
    "state": 5, "time": "yesterday", "step": "x", "max_steps": [], "loss": {}, "eta_s": "soon", "error": 3,
    "submission": 7, "index": "2", "event": ["start"], "job": 1, "indices": ["2"], "kind": "evaluation",
}  # fmt: skip
CONTENTS = {
    "empty": b"",
    "cut": b'{"state": "fini',
    "null": b"null\n",
    "list": b"[1, 2]\n",
    "number": b"7\n",
    "text": b'"x"\n',
    "binary": b"\xff\xfe\x00\x80\n",
    "zeros": bytes(4096),
    "deep": b"[" * 200_000 + b"\n",
    "huge number": b'{"time": 1' + b"0" * 400 + b', "step": 1' + b"0" * 400 + b"}\n",
    "nan": b'{"state": "running", "time": NaN, "eta_s": NaN, "loss": NaN, "step": 1, "max_steps": 2}\n',
    "infinite": b'{"state": "running", "time": Infinity, "eta_s": -Infinity, "step": 1}\n',
    "wrong types": json.dumps(WRONG).encode() + b"\n",
    "nothing in it": b"{}\n",
    "null bytes in a path": b'{"submission": "a\\u0000b", "index": 0}\n',
    "a lone surrogate": b'{"submission": "\\ud800", "index": 0, "state": "\\ud800"}\n',
}
STRAYS = (".nfs000000000123", "abc", "1.bak", "007", "²", "-1", "0", "9" * 30, "1 ", "2~", "Thumbs.db")
STATES = {
    "pending", "starting", "running", "finished", "failed", "cancelled", "stopped", "lost", "missing",
}  # fmt: skip


def check_all_commands(still: Bench, submits: set[int]) -> None:
    """Every command works, and only point 2 is ever submitted again."""
    assert "2 finished" in still.jobs("status")
    assert still.names()[:2] == ["finished"] * 2
    for command in ("logs", "why", "list", "cancel"):
        still.jobs(command)
    sweep = SweepFolder.open(still.folder)
    collect.collect(sweep, still.path / "out", "objective", None)
    before = len(still.submissions)
    said = still.sweep()
    assert any(f"submitted {n} points" in said for n in submits), said
    for submission in still.submissions[before:]:
        assert submission.indices == [2]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
@pytest.mark.parametrize("file", FILES.values(), ids=FILES.keys())
def test_one_damaged_file_is_one_points_state(still: Bench, file: str, content: bytes) -> None:
    path = still.path / file.format(id=still.folder.name)
    path.write_bytes(content)
    assert set(still.names()) <= STATES | {"5", "fini"}
    if "submission.json" in file:
        assert "launch/sweep.py command" in still.jobs("retry", check=2)
    else:
        assert "submitted 1 points" in still.jobs("retry")
        assert [s.indices for s in still.submissions] == [[0, 1, 2], [2]]
    check_all_commands(still, {1})


@pytest.mark.parametrize("file", [f for k, f in FILES.items() if k != "owner"])
def test_a_folder_in_the_place_of_a_file(still: Bench, file: str) -> None:
    path = still.path / file.format(id=still.folder.name)
    path.unlink(missing_ok=True)
    path.mkdir()
    check_all_commands(still, {1})


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", STRAYS)
def test_a_stray_among_the_submissions_is_none(still: Bench, name: str, kind: str) -> None:
    stray = still.folder / "submissions" / name
    stray.mkdir() if kind == "folder" else stray.write_text("{}")
    assert "submitted 1 points" in still.jobs("retry")
    check_all_commands(still, {1})
    assert [int(s.path.name) for s in still.submissions] == [1, 2, 3]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_damaged_sweep_is_named(still: Bench, content: bytes) -> None:
    (still.folder / "sweep.json").write_bytes(content)
    for command in ("status", "retry", "cancel", "logs"):
        assert "sweep.json is damaged: remove it" in still.jobs(command, check=2)
    assert f"{still.folder.name}: sweep.json is damaged" in still.jobs("list")
    (still.folder / "sweep.json").unlink()
    assert "submitted 1 points" in still.sweep()
    assert "2 finished" in still.jobs("status")


def test_a_point_whose_configuration_is_gone_does_not_keep_others_from_a_retry(still: Bench) -> None:
    (still.run(1) / "status.json").unlink()
    still.submissions[0].config(2).unlink()
    said = still.jobs("retry")
    assert "point 2: its configuration is gone" in said and "submitted 1 points" in said
    assert still.submissions[-1].indices == [1]


def test_another_sweeps_damage_is_its_own(still: Bench) -> None:
    """A run may belong to the submission of another sweep."""
    other = still.path / "sweeps" / "other" / "submissions" / "1"
    (other / "points").mkdir(parents=True)
    (other.parents[1] / "sweep.json").write_text("{")
    replace(still.submissions[0], path=other).write()
    (still.run(2) / "owner.json").write_text(json.dumps({"submission": str(other), "index": 2}))
    check_all_commands(still, {1})


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_small_files_are_whole_or_absent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert isinstance(read_json(file), dict)
    append_line(file, {"step": 3})
    assert read_lines(file)[-1] == {"step": 3}
    assert all(isinstance(line, dict) for line in read_lines(file))


# Hosts and clocks


@pytest.mark.parametrize(
    ("age", "name"),
    [(0, "running"), (20, "running"), (31, "lost"), (3600, "lost"), (-4, "running"), (-10, "lost"), (-1e9, "lost")],
)
def test_a_heartbeat_counts_while_it_is_fresh(still: Bench, age: float, name: str) -> None:
    still.status(2, state="running", time=time.time() - age, step=1, max_steps=2)
    (still.submissions[0].path / "points" / "2.events").unlink()
    assert still.names()[2] == name


@pytest.mark.parametrize("age", [31.0, 3600.0, -3600.0])
@pytest.mark.parametrize("command", ["cancel", "retry", "sweep"])
def test_a_point_of_a_host_that_is_gone_can_be_released(
    still: Bench, monkeypatch: pytest.MonkeyPatch, age: float, command: str
) -> None:
    """A container that was restarted has another name."""
    (still.submissions[0].path / "points" / "2.events").unlink()
    still.submissions[0].add_event(2, "start", job="pid 1")
    still.status(2, state="running", time=time.time() - age, step=1, max_steps=2)
    still.age(still.submissions[0], age)
    monkeypatch.setattr(platform, "node", lambda: "renamed")
    assert still.names()[2] == "lost"
    if command == "cancel":
        assert "cancelled 1 points" in still.jobs("cancel")
        assert still.names()[2] == "cancelled"
        assert "submitted 1 points" in still.jobs("retry")
    else:
        assert "submitted 1 points" in (still.sweep() if command == "sweep" else still.jobs("retry"))


def test_another_hosts_points_run_while_its_scheduler_lives_and_see_that_they_are_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.seconds = 600
    bench.sweep()
    until(lambda: all((bench.run(i) / "ran").exists() for i in range(3)), 120)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "node", lambda: "elsewhere")
        assert set(bench.names()) == {"starting"}
        assert "cancelled 3 points" in bench.jobs("cancel")
    until(lambda: set(bench.names()) == {"cancelled"}, 120, lambda: str(bench.states()))
    until(lambda: not local._found(bench.submissions[0]), 120)


def test_a_job_that_was_killed_does_not_run_for_as_long_as_its_scheduler(bench: Bench) -> None:
    """And its training ends with it, which nobody could cancel any more."""
    bench.seconds = 600
    bench.sweep()
    until(lambda: all((bench.run(i) / "ran").exists() for i in range(3)), 120)
    (submission,) = bench.submissions
    job = int(submission.last(1)["job"].removeprefix("pid "))
    (training,) = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    os.kill(job, signal.SIGKILL)
    until(lambda: bench.names() == ["starting", "failed", "starting"], 120, lambda: str(bench.states()))
    until(lambda: not running(training), 120)
    bench.jobs("cancel")


def running(pid: str) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_an_earlier_submission_runs_can_be_cancelled_after_a_later_one(bench: Bench) -> None:
    """The scheduler was killed, its jobs run on, without a heartbeat yet, and the command was given again."""
    bench.seconds = 600
    bench.sweep()
    until(lambda: all((bench.run(i) / "ran").exists() for i in range(3)), 120)
    first = bench.submissions[0]
    jobs = [first.last(i)["job"].removeprefix("pid ") for i in range(3)]
    os.kill(int(first.job), signal.SIGKILL)
    until(lambda: not local.alive(first), 120)
    assert "submitted 3 points" in bench.sweep()
    until(lambda: all(bench.submissions[1].events(i) for i in range(3)), 120)
    bench.jobs("cancel")
    until(lambda: not any(map(running, jobs)), 120)
    assert set(bench.names()) == {"cancelled"}


def test_cancel_does_without_a_cluster_that_does_not_answer(still: Bench) -> None:
    """PATH has neither squeue nor scancel."""
    (still.submissions[0].path / "points" / "2.events").unlink()
    (still.run(2) / "status.json").unlink()
    replace(still.submissions[0], where="slurm", job="77").write()
    assert still.names()[2] == "pending" and "squeue does not answer" in still.jobs("status")
    assert "scancel failed" in still.jobs("cancel")
    assert still.names()[2] == "cancelled"


def test_a_request_between_two_attempts_is_not_lost() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    try:
        first = Attempt([["true"]], [{}], forward=True)
        assert first.wait() == 0 and not first.asked
        signal.raise_signal(signal.SIGTERM)
        second = Attempt([["sleep", "60"]], [{}], forward=True, before=first)
        assert second.wait() == 128 + signal.SIGTERM and second.asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Tables


@pytest.mark.parametrize(
    "value",
    [
        "a|b", "a\nb", "a\r\nb", "a\u2028b", "a\x85b", "<b>x</b>", "<script>alert(1)</script>", "a\\|b", "&lt;",
        "\t|\t",
        "-->", "\x1b[2J", "| --- |\n|--|", "</td></tr>", {"a|b": "<i>"}, ["a\n|"], None, "", "x" * 1000,
    ],
)  # fmt: skip
def test_a_value_stays_in_its_cell(value: Any) -> None:
    """In a table's row, in the line of the best, and in that of a missing point."""
    entries = [Entry(i, {"key|\n<b>": value}, "", Path(f"runs/{value!s:.9}")) for i in range(2)]
    rows = [
        collect.Row(State(entries[0], "finished", {}, None), {"objective": 1.0, "mse|<": 2.0}, {}),
        collect.Row(State(entries[1], "failed", {}, None, "a | b\n<script>\n| c |"), {}, {}),
    ]
    best = collect.Setting(entries[0].values, rows[:1], 1.0, 0.0, rows[0].metrics, {"mse|<": 0.0})
    text = collect.markdown([best], rows, "objective")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 3 and {line.count("|") for line in table} == {5}
    assert len(lines) == 8 and not set(text) & set("<\x1b\t\r")
