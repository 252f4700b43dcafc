"""Whatever happens to a 2-node run on SLURM, it ends with the weights of a run that nothing happened to."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.files import read_lines
from launch.store import SweepFolder
from tests.launch.support import CLUSTER, Cluster, Project, parent, tasks, uncounted, until, weights

# Enough steps after the first checkpoint that the fault comes before the end, on a machine with nothing else to do.
STEPS = ("trainer.max_steps=1000", "trainer.checkpoint.every=50", "launcher.nodes=2")
LIMIT = ("launcher.timeout_min=30", "launcher.signal_delay_s=20")


class Run:
    """The same 2-node run under a root of its own."""

    def __init__(self, project: Project, cluster: Cluster, name: str) -> None:
        self.project, self.cluster = project, cluster
        extra = [o for o in LIMIT if name == "limit"]
        # SLURM gives an array's last task the number of the whole array: it must be told apart from the others.
        self.index = 1 if name == "kill_rank" else 0
        self.id = project.sweep(*STEPS, f"run.root={name}", *extra, "seed=1,0" if self.index else "seed=0")
        self.sweep = SweepFolder.open(project.path / "sweeps" / self.id)
        self.path = self.sweep.points[self.index].run

    @property
    def job(self) -> str:
        """The array task's name."""
        return f"{self.sweep.submissions()[-1].job}_{self.index}"

    def log(self) -> str:
        log = self.sweep.log(self.index)
        return log.read_text() if log.exists() else ""

    def starts(self) -> list[bool]:
        """Of each start that the metrics record: whether it was a restart."""
        return [m["restart"] for m in read_lines(self.path / "metrics.jsonl") if m["kind"] == "start"]

    def rank(self, rank: int) -> int:
        """The process id of a rank, once the run has a checkpoint to lose work after."""
        saved = self.path / "checkpoints"
        until(lambda: list(saved.glob("step-*/COMMITTED")), 600, self.log)
        job = self.cluster.run("squeue", "--noheader", "--format=%A", f"--jobs={self.job}").strip()
        return int(until(lambda: next(tasks(SLURM_PROCID=str(rank), SLURM_JOB_ID=job), None), 300, self.log))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shards: Path, cluster: Cluster) -> Project:
    environment = {**os.environ, "SLURM_CONF": str(cluster.state / "slurm.conf")}
    return Project(tmp_path_factory.mktemp("faults"), shards, uncounted(environment))


def requeue(run: Run) -> None:
    run.rank(0)
    run.cluster.run("scontrol", "requeue", run.job)


def kill_rank(run: Run) -> None:
    os.kill(run.rank(1), signal.SIGKILL)


def hit_the_time_limit(run: Run) -> None:
    """Holds a rank still and shortens its time: SLURM wakes it with the signal that this is nearly over. Once."""
    pid, begin = run.rank(1), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    job = f"JobId={run.job}"
    state, elapsed = (("squeue", "--noheader", f"--format={what}", f"--jobs={run.job}") for what in ("%T", "%M"))
    minutes, seconds = map(int, run.cluster.run(*elapsed).strip().split(":")[-2:])
    run.cluster.run("scontrol", "update", job, f"TimeLimit={minutes + (1 if seconds < 30 else 2)}")

    def requeued() -> bool:
        if time.monotonic() - begin > 90:  # the signal has come, perhaps just before the rank was held
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return run.cluster.run(*state).strip() == "PENDING"

    until(requeued, 400, run.log)
    run.cluster.run("scontrol", "update", job, "TimeLimit=30")


def lose_a_node(run: Run) -> None:
    """Kills a node's slurmd, its step and its rank, then brings the node back."""
    pid = run.rank(1)
    daemon = int((run.cluster.state / "dtrain2.pid").read_text())
    for victim in (daemon, parent(pid), pid):
        os.kill(victim, signal.SIGKILL)
    down = ("sinfo", "--noheader", "--nodes=dtrain2", "--partition=main", "--format=%T")
    until(lambda: run.cluster.run(*down).startswith("down"), 300, run.log)
    run.cluster.run(CLUSTER, "node", "dtrain2")
    states = (
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        "--duplicates",
        "--format=State",
        "--jobs",
        run.job,
    )
    until(lambda: "NODE_FAIL" in run.cluster.run(*states), 120, run.log)  # slurmdbd hears of it a little later


EARLY = {"requeue": requeue, "kill_rank": kill_rank, "limit": hit_the_time_limit}


@pytest.fixture(scope="module")
def runs(project: Project, cluster: Cluster) -> dict[str, Run]:
    """All but the lost node's, which would disturb the others: side by side, each with its fault under way."""
    started = {"nothing": Run(project, cluster, "nothing")}
    for name, fault in EARLY.items():
        started[name] = Run(project, cluster, name)
        fault(started[name])
    return started


@pytest.fixture(scope="module")
def undisturbed(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final weights of the run that nothing happens to."""
    runs["nothing"].project.wait(runs["nothing"].id)
    assert len(runs["nothing"].starts()) == 1
    return weights(runs["nothing"].path, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("name", [*EARLY, "lose_a_node"])
def test_an_interrupted_run_ends_with_the_same_weights(
    name: str, runs: dict[str, Run], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = runs[name] if name in runs else Run(runs["nothing"].project, runs["nothing"].cluster, name)
    if name not in runs:
        lose_a_node(run)
    run.project.wait(run.id)
    final = weights(run.path, tmp_path)
    assert final.keys() == undisturbed.keys()
    different = [k for k, v in final.items() if not torch.equal(v, undisturbed[k])]
    assert not different, run.log()
    first, *later = run.starts()
    assert first is False and later and all(later)
    assert run.log().count("step 20/1000") == 1 and "finished" in run.log(), "a restart overwrote the log"
