"""What the launcher's tests do to a sweep: start it as a person would, watch it, and break it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.files import read_json
from launch.store import SweepFolder

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = str(ROOT / "slurm" / "devcluster" / "cluster.sh")
SMALL = ("model.levels=[{latent:3,hidden:8},{latent:2,hidden:4}]",)
EVALUATION = ("run.report=false", "evaluate.grid=2", "evaluate.points=8", "evaluate.rows=2", "evaluate.samples=4")
TINY = (
    *SMALL, "trainer.batch_size=32", "trainer.log_every=10", *EVALUATION, "launcher.timeout_min=10",
    "launcher.cpus_per_task=1",
)  # fmt: skip


class StubChecker:
    """In the place of launch.check.Checker: every model can be built."""

    def __init__(self, known: Path) -> None:
        pass

    def close(self) -> None:
        pass

    def errors(self, configs: list[Any]) -> list[str | None]:
        return [None] * len(configs)


def write_noise(path: Path, shape: tuple[int, int, int], train: int, heldout: int) -> None:
    """Shards of random labelled images, shape (H, W, C), H = W, with two held-out splits."""
    for seed, (split, count) in enumerate((("train", train), ("valid", heldout), ("test", heldout))):
        images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
        write_split(path / split, array_source(images, np.arange(count), {"what": "noise"}, None, "noise"), ("npy",))


def uncounted(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment whose processes are left out of the coverage, which makes a short run take 4 seconds for 3."""
    return {k: v for k, v in environment.items() if k != "COVERAGE_PROCESS_CONFIG"}


@dataclass(frozen=True)
class Cluster:
    """The running one-machine SLURM."""

    state: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """The output of one of SLURM's commands, or of cluster.sh, called from the project."""
        environment = {**self.environment, "SLURM_CONF": str(self.state / "slurm.conf")}
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Project:
    """A folder to launch from, with the environment of its shell."""

    path: Path
    shards: Path
    environment: dict[str, str]

    def command(self, script: str, *arguments: str) -> list[str]:
        """launch/<script> with the tiny data set."""
        data = [f"data.path={self.shards}", *TINY] if script == "sweep.py" else []
        return [sys.executable, str(ROOT / "launch" / script), *data, *arguments]

    def __call__(self, script: str, *arguments: str, check: int = 0) -> str:
        """Runs it; returns all it printed. check: the expected exit code."""
        done = subprocess.run(
            self.command(script, *arguments), cwd=self.path, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == check, done.stdout
        return done.stdout

    def sweep(self, *arguments: str) -> str:
        """Submits a sweep and returns its id."""
        return self.id_of(self("sweep.py", "-m", *arguments))

    @staticmethod
    def id_of(printed: str) -> str:
        """The id in what sweep.py printed."""
        return printed.partition("sweep ")[2].partition(":")[0]

    def wait(self, sweep: str, seconds: float = 1200) -> None:
        """Until every point is finished, by the runs' own word."""
        points = SweepFolder.open(self.path / "sweeps" / sweep).points

        def finished() -> bool:
            states = [read_json(p.run / "status.json").get("state") for p in points]
            return all(s == "finished" for s in states)

        until(finished, seconds, lambda: self("jobs.py", "logs", sweep))


def until(condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = str) -> Any:
    """The first true value of the condition. AssertionError with explain() after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s\n{explain()}"
        time.sleep(0.2)
    return value


def tasks(**variables: str) -> Iterator[int]:
    """Process ids of dtrain's ranks whose environment has these variables."""
    wanted = {f"{k}={v}".encode() for k, v in variables.items()}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"dtrain" in words and wanted <= set((process / "environ").read_bytes().split(b"\0")):
                yield int(process.name)


def parent(pid: int) -> int:
    """A process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def weights(run: Path, work: Path) -> dict[str, Any]:
    """The tensors of a run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    file = work / f"{os.urandom(4).hex()}.pt"
    dcp_to_torch_save(newest, file)
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded
