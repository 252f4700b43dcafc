"""Sweeps on a machine without SLURM: the same command, folders and follow-up."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dtrain.files import read_json, read_lines
from launch import local, slurm
from launch.store import Submission, SweepFolder
from launch.submit import where
from tests.launch.support import Project, tasks, until
from tests.runs import write_shades


@pytest.fixture
def project(tmp_path: Path, shards: Path) -> Project:
    """A shell whose PATH has no sbatch."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(str(shutil.which("git")))
    return Project(tmp_path, shards, {**os.environ, "PATH": str(programs)})


def test_four_points_run_two_at_a_time(project: Project) -> None:
    printed = project(
        "sweep.py", "-m", "seed=range(0,4)", "trainer.max_steps=3", "sweep.parallel=2", "sweep.wait=true"
    )
    assert "4 points" in printed and "2 at a time on this machine" in printed
    sweep = SweepFolder.open(project.path / "sweeps" / project.id_of(printed))
    (submission,) = sweep.submissions()
    spans = []
    for point in sweep.points:
        events = submission.events(point.index)
        assert [e["event"] for e in events] == ["start", "end"] and events[-1]["how"] == "finished"
        spans.append((events[0]["time"], events[1]["time"]))
    at_once = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(at_once) <= 2  # that two are together: test_sharing.py
    collected = project("collect.py", sweep.id)
    assert "all 4 points are finished" in collected and "± " in collected and "(4)" in collected
    assert "submitted 0 points" in project("sweep.py", "-m", "seed=range(0,4)", "trainer.max_steps=3")


def test_the_winner_of_a_sweep_is_the_validation_splits(project: Project) -> None:
    """The longer it trains on dark images, the better it reconstructs dark ones, and the worse bright ones."""
    write_shades(project.path / "shades", (1, 28, 28), train=0, valid=0, test=215)
    shaded = replace(project, shards=project.path / "shades")
    printed = shaded("sweep.py", "-m", "trainer.max_steps=1,60", "sweep.wait=true")
    sweep = SweepFolder.open(project.path / "sweeps" / project.id_of(printed))
    assert "best of 2 by mse/level1: trainer.max_steps=60" in project(
        "collect.py", sweep.id, "--objective", "mse/level1"
    )
    short, long = (
        {m["split"]: m["mse/level1"] for m in read_lines(p.run / "metrics.jsonl") if m["kind"] == "evaluation"}
        for p in sweep.points
    )
    assert long["valid"] < short["valid"] and long["test"] > short["test"]


def test_a_point_runs_once_restarts_after_a_kill_and_saves_when_cancelled(project: Project) -> None:
    options = ("seed=0,1", "trainer.max_steps=100000", "trainer.checkpoint.every=20", "launcher.tasks_per_node=2")
    sweep = SweepFolder.open(project.path / "sweeps" / project.sweep(*options, "sweep.parallel=1"))
    run, config = sweep.points[0].run, str(sweep.submissions()[0].config(0))
    until(lambda: list(run.glob("checkpoints/step-*/COMMITTED")), 300, sweep.log(0).read_text)
    second = [sys.executable, "-m", "launch.job", str(sweep.submissions()[0].path), "0"]
    refused = subprocess.run(second, cwd=project.path, capture_output=True, text=True, check=True)
    assert "is being run by job pid" in refused.stdout
    victim = next(p for p in tasks(RANK="1") if config in Path(f"/proc/{p}/cmdline").read_text())
    os.kill(victim, signal.SIGKILL)
    until(lambda: read_json(run / "status.json").get("state") == "failed", 300, sweep.log(0).read_text)
    until(lambda: read_json(run / "status.json")["state"] == "running", 300, sweep.log(0).read_text)
    status = project("jobs.py", "status", sweep.id)
    assert "1 running" in status and "1 pending" in status
    project("jobs.py", "cancel", sweep.id)
    until(lambda: read_json(run / "status.json")["state"] == "stopped", 300, sweep.log(0).read_text)
    until(lambda: "2 cancelled" in project("jobs.py", "status", sweep.id), 120)
    assert not (sweep.points[1].run / "status.json").exists()
    assert [e["how"] for e in sweep.submissions()[0].events(0) if e["event"] == "end"] == ["killed", "stopped"]


def test_cancelling_never_signals_another_machines_or_a_strangers_process(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        until(Path(f"/proc/{stranger.pid}/cmdline").read_bytes, 50)  # before that it might be anybody's
        submission = Submission(tmp_path, "local", [0], {}, str(stranger.pid), platform.node(), 1)
        submission.add_event(0, "start", job=f"pid {stranger.pid}")
        local.cancel(submission, [0])
        local.cancel(replace(submission, host="elsewhere"), [0])
        assert stranger.poll() is None
        assert not local.alive(submission)
        stranger.kill()


def test_a_scheduler_that_has_just_been_started_is_found_and_a_dead_one_is_not(tmp_path: Path) -> None:
    package = tmp_path / "code" / "launch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "local.py").write_text("import time\ntime.sleep(600)\n")
    unnoted = Submission(tmp_path, "local", [0], {}, "", platform.node(), 1)
    for _ in range(20):  # its command line is empty while its program is loaded
        pid = local.start(tmp_path, package.parent, tmp_path / "log")
        noted = replace(unnoted, job=str(pid))
        assert local.alive(unnoted) and local.alive(noted)
        os.kill(pid, signal.SIGKILL)
        until(lambda p=pid: "Z" in Path(f"/proc/{p}/stat").read_text().split()[2:3], 60)
        assert not local.alive(unnoted) and not local.alive(noted)
        os.waitpid(pid, 0)


def test_more_than_this_machine_has_is_refused(project: Project) -> None:
    assert "this machine is one node" in project("sweep.py", "-m", "seed=1,2", "launcher.nodes=2", check=2)
    assert "asks for 99 GPUs" in project(
        "sweep.py", "-m", "seed=1,2", "launcher.gpus_per_node=99", "trainer.batch_size=99", check=2
    )
    assert "no sbatch in PATH" in project("sweep.py", "-m", "seed=1,2", "sweep.where=slurm", check=2)
    assert not (project.path / "runs").exists()


def test_auto_takes_slurm_only_where_a_cluster_answers_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = []
    for answer in (
        "echo 'Slurmctld(primary) at one is DOWN'; echo 'Slurmctld(backup) at two is UP'",
        "echo 'Slurmctld(primary) at one is DOWN'",
        "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1",
        "exec sleep 60",
    ):
        for name, does in (("sbatch", "exit 1"), ("scontrol", answer)):
            (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setattr(slurm, "PING", 2.0 if "sleep" in answer else 60.0)
        found.append(where("auto"))
    assert found == ["slurm", "local", "local", "local"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "sweep.where=auto: slurm (a cluster answers)"
    assert set(said[1:]) == {"sweep.where=auto: local (sbatch, but no cluster answers)"}
