"""Every signal that asks for a stop, at every moment of a run: saved, ended with 75, continued to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dtrain.checkpoint import Checkpointer
from dtrain.data.resident import ResidentLoader
from dtrain.evaluate.evaluator import Evaluator
from dtrain.files import STOPPED
from dtrain.trainer import Trainer
from dtrain.update import Updater
from tests.harness import difference
from tests.processes import launch
from tests.runs import ROOT, command, environment, execute, final_weights, freeze, status

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)
MOMENTS: dict[str, tuple[Any, str]] = {
    "loading": (ResidentLoader, "_load"),
    "first step": (Trainer, "advance"),
    "evaluation": (Evaluator, "measure"),
    "pictures": (Evaluator, "draw"),
    "save": (Checkpointer, "_write"),
    "compile": (Updater, "_callable"),
}
EVERYWHERE = [(1, number, moment) for number in SIGNALS for moment in MOMENTS if moment != "compile"]
SAMPLE = [
    pytest.param(1, signal.SIGTERM, "compile", marks=pytest.mark.slow),
    (2, signal.SIGINT, "first step"),
    (2, signal.SIGHUP, "pictures"),
    (2, signal.SIGTERM, "evaluation"),
    (2, signal.SIGUSR2, "save"),
]


def configured(folder: Path, shards: Path, *overrides: str) -> Path:
    return freeze(folder, shards, "trainer.max_steps=6", "trainer.evaluate_every=2", *overrides)


def signalled(file: Path, number: int, moment: str) -> int:
    """The run on this rank, of which the last one gets the signal at that moment, once."""
    signal.signal(number, signal.SIG_DFL)  # a shell's background job ignores SIGINT
    owner, name = MOMENTS[moment]
    method, left = getattr(owner, name), [os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)]

    def hooked(self: Any, *args: Any) -> Any:
        if left[0]:
            left[0] = False
            os.kill(os.getpid(), number)
        return method(self, *args)

    setattr(owner, name, hooked)
    return execute(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert execute(configured(folder, shards)) == 0
    return final_weights(folder)


@pytest.mark.parametrize(("world", "number", "moment"), [*EVERYWHERE, *SAMPLE])
def test_a_request_to_stop_at_any_moment_saves_and_continues(
    tmp_path: Path, shards: Path, whole: dict[str, Tensor], world: int, number: int, moment: str
) -> None:
    run = tmp_path / "run"
    file = configured(run, shards, *(["trainer.compile=true"] if moment == "compile" else []))
    assert launch(world, signalled, file, number, moment, timeout=400) == [STOPPED] * world
    assert moment == "loading" or status(run)["state"] == "stopped"
    assert launch(world, execute, file, timeout=400) == [0] * world
    tolerance = 0 if world == 1 and moment != "compile" else 1e-4
    assert difference(final_weights(run), whole) <= tolerance


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_one_by_hand_ends_at_once(tmp_path: Path, shards: Path, number: int) -> None:
    """The first is said to be saving; here its step takes for ever."""
    model = {"_target_": "tests.poison.Poisoned", "hang_at": [0]}
    file = freeze(tmp_path / "run", shards, model=model)
    process = subprocess.Popen(
        command("--config", file), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    while not (tmp_path / "run" / "status.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.stderr is not None
    assert "press again to end at once" in process.stderr.readline()
    time.sleep(1.2)
    process.send_signal(number)
    begin = time.monotonic()
    assert process.wait(20) == 128 + number
    assert time.monotonic() - begin < 5


def test_ranks_do_not_outlive_a_killed_torchrun(tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=100000", "trainer.checkpoint.every=100000")
    torchrun = subprocess.Popen(command("--config", file, world=2), cwd=ROOT, env=environment())
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or '"train"' not in metrics.read_text():
        assert torchrun.poll() is None
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True, check=True).stdout
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found.split()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in found.split())
    assert status(tmp_path / "run")["state"] == "stopped", "what they had done is saved"


def test_a_closed_pipe_ends_no_run(tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=30", "trainer.log_every=1")
    process = subprocess.Popen(command("--config", file), cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0, sys.executable
    assert status(tmp_path / "run")["state"] == "finished"
