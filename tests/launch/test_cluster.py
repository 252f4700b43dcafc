"""The paper's grid on a real SLURM: submitted once, finished whatever becomes of the shell, collected, repeated."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dtrain.files import read_json
from launch.store import SweepFolder
from tests.launch.support import (
    CLUSTER,
    EVALUATION,
    ROOT,
    SMALL,
    Cluster,
    Project,
    uncounted,
    until,
    weights,
    write_noise,
)

GRID = ("-m", "model=stackedwae", "lambda=grid", "trainer.max_steps=4", "launcher.array_parallelism=4")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shards: Path, cluster: Cluster) -> Project:
    environment = {**os.environ, "SLURM_CONF": str(cluster.state / "slurm.conf")}
    return Project(tmp_path_factory.mktemp("grid"), shards, environment)


@pytest.fixture(scope="module")
def grid(project: Project) -> SweepFolder:
    """The finished 25 points, whose submitting shell was killed right after it had submitted."""
    shell = subprocess.Popen(
        project.command("sweep.py", *GRID, "sweep.wait=true"), cwd=project.path, env=uncounted(project.environment),
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert shell.stdout is not None
    printed = ""
    while "submitted 25 points" not in printed:
        printed += shell.stdout.readline()
    os.killpg(shell.pid, 9)
    shell.wait()
    assert "sweep.where=auto: slurm (a cluster answers)" in printed
    sweep = project.id_of(printed)
    early = project("collect.py", sweep)
    assert "missing: " in early and "of 25 points" in early
    project.wait(sweep, 3000)
    return SweepFolder.open(project.path / "sweeps" / sweep)


def test_the_grid_is_collected_with_its_best_point(grid: SweepFolder, project: Project) -> None:
    assert "25 finished" in project("jobs.py", "status", grid.id)
    printed = project("collect.py", grid.id)
    assert "all 25 points are finished" in printed and "best of 25 by objective" in printed
    with (grid.path / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    pairs = {(float(r["model.lambda_rec"]), float(r["model.lambda_match"])) for r in rows}
    assert pairs == {(a, b) for a in (0.01, 0.05, 0.1, 0.5, 1) for b in (1e-4, 1e-3, 1e-2, 1e-1, 1)}
    best = min(rows, key=lambda r: float(r["objective"]))
    words = printed.partition("best of 25 by objective: ")[2]
    assert words.startswith(f"model.lambda_rec={float(best['model.lambda_rec']):g}, model.lambda_match=")
    assert best["run"] in words
    assert (grid.path / "heatmap.png").stat().st_size > 10_000


def test_the_same_command_submits_only_what_is_missing(grid: SweepFolder, project: Project) -> None:
    again = project("sweep.py", *GRID)
    assert "submitted 0 points" in again and "25 finished" in again
    shutil.rmtree(grid.points[7].run)
    assert "submitted 1 points" in project("sweep.py", *GRID)
    assert grid.submissions()[-1].indices == [7]
    project.wait(grid.id)
    assert "submitted 0 points" in project("sweep.py", *GRID)


def test_a_halved_grid_is_judged_by_jobs_and_ends_with_the_weights_of_the_whole_one(
    grid: SweepFolder, project: Project, tmp_path: Path
) -> None:
    pairs = ("model=stackedwae", "model.lambda_rec=.01,.05", "model.lambda_match=1e-4,1e-3", GRID[3])
    submitted = project.sweep(*pairs, "run.root=halved", "sweep.halving=2", "sweep.rungs=1")
    sweep = SweepFolder.open(project.path / "sweeps" / submitted)
    until(
        lambda: states(sweep) == ["finished"] * 2 + ["paused"] * 2, 1200, lambda: project("jobs.py", "logs", sweep.id)
    )
    assert "2 of 2 points have come to all of the steps" in project("jobs.py", "status", sweep.id)
    for point in sweep.points:
        status = read_json(point.run / "status.json")
        assert status["step"] == (4 if status["state"] == "finished" else 2)
        if status["state"] == "finished":
            whole = next(p.run for p in grid.points if p.signature == point.signature)
            one, other = weights(point.run, tmp_path), weights(whole, tmp_path)
            assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in other)


def states(sweep: SweepFolder) -> list[str]:
    """What the runs say of themselves, in order."""
    return sorted(str(read_json(p.run / "status.json").get("state")) for p in sweep.points)


def test_an_impossible_point_stops_the_whole_sweep(project: Project, cluster: Cluster) -> None:
    jobs = ("sacct", "--noheader", "--allocations", "--format=JobID")
    before = cluster.run(*jobs)
    said = project("sweep.py", "-m", "trainer.batch_size=32,30", "run.root=bad", "launcher.nodes=4", check=2)
    assert "point 1 (trainer.batch_size=30)" in said and "nothing was submitted" in said
    assert cluster.run(*jobs) == before and not (project.path / "bad").exists()


def test_two_commands_at_once_submit_a_point_once(project: Project) -> None:
    command = project.command("sweep.py", "-m", "seed=5,6", "run.root=twice", "trainer.max_steps=2")
    shells = [
        subprocess.Popen(command, cwd=project.path, env=project.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = sorted(shell.communicate()[0].partition("\nsubmitted ")[2].split()[0] for shell in shells)
    assert printed == ["0", "2"]


def test_code_that_changes_after_submission_does_not_reach_the_jobs(project: Project) -> None:
    sweep = SweepFolder.open(
        project.path / "sweeps" / project.sweep("seed=9", "run.root=code", "trainer.max_steps=2")
    )
    project.wait(sweep.id)
    recorded = read_json(sweep.points[0].run / "environment.json")["command"][0]
    assert recorded.startswith(str(sweep.path / "code"))


def test_a_run_name_is_never_run_by_a_shell(project: Project) -> None:
    name = "$(touch x) `touch x`; touch x"
    sweep = project.sweep(
        f"run.name='{name}'", f"sweep.name='{name}'", f"launcher.comment='{name}'", "trainer.max_steps=2"
    )
    project.wait(sweep)
    assert not list(project.path.rglob("x"))
    assert list((project.path / "runs").glob("$(touch x) `touch x`; touch x-*"))


def test_cancel_saves_and_retry_continues(project: Project) -> None:
    sweep = SweepFolder.open(
        project.path / "sweeps" / project.sweep("seed=3", "run.root=stop", "trainer.max_steps=100000")
    )
    run = sweep.points[0].run
    until(lambda: read_json(run / "status.json").get("step", 0) > 0, 300)
    project("jobs.py", "cancel", sweep.id)
    until(lambda: "1 cancelled" in project("jobs.py", "status", sweep.id), 300, sweep.log(0).read_text)
    stopped = read_json(run / "status.json")
    assert stopped["state"] == "stopped" and list(run.glob("checkpoints/step-*/COMMITTED"))
    assert "submitted 1 points" in project("jobs.py", "retry", sweep.id, "launcher.cpus_per_task=2")
    until(lambda: read_json(run / "status.json")["step"] > stopped["step"], 300, sweep.log(0).read_text)
    assert f"step {stopped['step']}" in project("jobs.py", "logs", sweep.id, "--lines=1000")
    project("jobs.py", "cancel", sweep.id)


def test_an_array_whose_id_was_never_noted_is_found_and_cancelled(project: Project) -> None:
    """Its submitting shell was killed right after sbatch; points that wait are found by their script."""
    options = (
        "seed=4",
        "run.root=killed",
        "trainer.max_steps=100000",
        "launcher.additional_parameters.begin=now+600",
    )
    sweep = SweepFolder.open(project.path / "sweeps" / project.sweep(*options))
    (submission,) = sweep.submissions()
    replace(submission, job="").write()
    assert "1 pending" in project("jobs.py", "status", sweep.id)
    assert sweep.submissions() == [submission]
    replace(submission, job="").write()
    assert "submitted 0 points" in project("sweep.py", "-m", *options)
    assert "cancelled 1 points" in project("jobs.py", "cancel", sweep.id)
    until(lambda: "1 cancelled" in project("jobs.py", "status", sweep.id), 300)


def test_points_that_share_a_gpu_are_one_task(project: Project, cluster: Cluster) -> None:
    """Cancelled alone, saved and requeued together, and finished."""
    options = ("seed=0,1,2", "run.root=shared", "trainer.max_steps=100000", "trainer.checkpoint.every=1000")
    sweep = SweepFolder.open(
        project.path / "sweeps" / project.sweep(*options, "launcher=gpu", "launcher.points_per_gpu=2")
    )
    (submission,) = sweep.submissions()
    job = f"{submission.job}_0"
    steps = lambda i: read_json(sweep.points[i].run / "status.json").get("step", 0)  # noqa: E731
    until(lambda: all(map(steps, (0, 1, 2))), 1200, sweep.log(0).read_text)
    queued = cluster.run("squeue", "--noheader", "--array", "--format=%i %b", f"--jobs={submission.job}")
    assert sorted(line.split()[0] for line in queued.splitlines()) == [job, f"{submission.job}_2"]
    project("jobs.py", "cancel", sweep.id, "1", "2")
    over = lambda: "2 cancelled" in project("jobs.py", "status", sweep.id)  # noqa: E731
    until(over, 600, lambda: project("jobs.py", "status", sweep.id))
    cluster.run("scontrol", "requeue", job)
    ended = lambda: [e for e in submission.events(0) if e["event"] == "end"]  # noqa: E731
    (end,) = until(ended, 600, sweep.log(0).read_text)
    until(lambda: steps(0) > end["step"], 600, sweep.log(0).read_text)
    assert [e["event"] for e in submission.events(0)] == ["start", "end", "requeue", "start"]
    assert end["how"] == submission.last(1)["how"] == "stopped"
    project("jobs.py", "cancel", sweep.id)
    until(lambda: "3 cancelled" in project("jobs.py", "status", sweep.id), 600)


# script -> sbatch's options, the experiment, its image shape, and what makes it tiny
SCRIPTS: dict[str, tuple[list[str], str, tuple[int, int, int], list[str]]] = {
    "celeba10.sh": (["--nodes=2", "--ntasks-per-node=1"], "celeba10", (64, 64, 3), []),
    "svhn6.sh": (["--ntasks-per-node=1"], "svhn6", (32, 32, 3), []),
    "swae_celeba.sh": (
        ["--ntasks-per-node=1"],
        "swae_celeba",
        (64, 64, 3),
        ["model.width=8", "model.critic_width=8", "evaluate.manipulate=[]"],
    ),
    "mnist_grid.sh": (["--array=7"], "quickstart", (28, 28, 1), list(SMALL)),
}


def test_the_sbatch_scripts_run_to_their_end(cluster: Cluster, tmp_path: Path) -> None:
    """Each with its own experiment and network, on random images."""
    for script, (options, experiment, shape, overrides) in SCRIPTS.items():
        shards = tmp_path / f"{script}.shards"
        write_noise(shards, shape, train=16, heldout=8)
        cluster.run(
            "env", f"DTRAIN_EXPERIMENT={experiment}", f"DTRAIN_PYTHON={sys.executable}",
            "sbatch", "--cpus-per-task=1", f"--output={tmp_path}/{script}.log", *options,
            str(ROOT / "slurm" / script), f"run.dir={tmp_path / script}", f"data.path={shards}",
            "trainer.max_steps=2", "trainer.batch_size=8", "trainer.precision=fp32", *EVALUATION, *overrides,
        )  # fmt: skip
    for script in SCRIPTS:
        status = tmp_path / script / "status.json"
        log = tmp_path / f"{script}.log"
        until(lambda s=status: read_json(s).get("state") == "finished", 1200, log.read_text)
        assert read_json(status.with_name("environment.json"))["world_size"] == (2 if script == "celeba10.sh" else 1)


def test_the_cluster_is_healthy_and_up_is_idempotent(cluster: Cluster) -> None:
    pids = {p.name: p.read_text() for p in cluster.state.glob("*.pid")}
    assert "ok   listens on loopback only" in cluster.run(CLUSTER, "up")
    assert {p.name: p.read_text() for p in cluster.state.glob("*.pid")} == pids
