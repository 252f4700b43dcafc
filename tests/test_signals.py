"""Every signal that asks for a stop, at every moment of a run: saved, ended with 75, continued to the same end."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from dtrain.checkpoint import Checkpointer
from dtrain.data.resident import ResidentLoader
from dtrain.evaluate.evaluator import Evaluator
from dtrain.faults import StopSignal, sheltered
from dtrain.files import STOPPED
from dtrain.trainer import Trainer
from dtrain.world import World
from tests.harness import difference, make_config, train
from tests.processes import launch
from tests.runs import ROOT, command, environment, execute, final_weights, freeze, status

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)
MOMENTS: dict[str, tuple[Any, str]] = {
    "loading": (ResidentLoader, "_load"),
    "first step": (Trainer, "advance"),
    "evaluation": (Evaluator, "measure"),
    "pictures": (Evaluator, "draw"),
    "save": (Checkpointer, "_write"),
}
SAMPLE = (
    (1, signal.SIGTERM, "loading"),
    (1, signal.SIGINT, "first step"),
    (1, signal.SIGHUP, "evaluation"),
    (1, signal.SIGUSR2, "pictures"),
    (1, signal.SIGTERM, "save"),
    (2, signal.SIGUSR2, "evaluation"),
)
TABLE = [
    case if case in SAMPLE else pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product((1, 2), SIGNALS, (*MOMENTS, "compile"))
]
# The first of its kernels sends the signal to the whole process group, as a terminal, torchrun and SLURM do. No shell
# script: dash forgets which signals it was started to leave pending.
COMPILER = """#!{python} -IS
import os, sys
if any(".main.cpp" in a for a in sys.argv) and not os.path.exists(mark := f"{{__file__}}.called"):
    os.close(os.open(mark, os.O_CREAT))
    os.kill(0, {number:d})
os.execv("{compiler}", ["{compiler}", *sys.argv[1:]])
"""


def configured(folder: Path, shards: Path, moment: str, *overrides: str) -> Path:
    """The run for a moment: where it compiles, a toy with little to compile."""
    if moment != "compile":
        return freeze(folder, shards, "trainer.max_steps=6", "trainer.evaluate_every=2", *overrides)
    toy, lengths = {"_target_": "tests.stages.TwoStage"}, "trainer.max_steps={autoencoder: 0, generator: 6}"
    return freeze(folder, shards, lengths, "trainer.compile=true", *overrides, model=toy)


def continued(file: Path) -> int:
    """The run on this rank; what it compiles, no other test has compiled."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(file.with_name(f"cache{os.environ['RANK']}"))
    inductor.cpp.vec_isa_ok = True  # else it compiles something just to see whether that works
    return execute(file)


def signalled(file: Path, number: int, moment: str) -> int:
    """The run on this rank, of which the last one gets the signal at that moment, once."""
    signal.signal(number, signal.SIG_DFL)  # a shell's background job ignores SIGINT
    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        (hook_compiler if moment == "compile" else hook)(file, number, moment)
    return continued(file)


def hook(file: Path, number: int, moment: str) -> None:
    owner, name = MOMENTS[moment]
    method, left = getattr(owner, name), [True]

    def hooked(self: Any, *args: Any) -> Any:
        if left[0]:
            left[0] = False
            os.kill(os.getpid(), number)
        return method(self, *args)

    setattr(owner, name, hooked)


def hook_compiler(file: Path, number: int, moment: str) -> None:
    compiler = file.parent / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(COMPILER.format(python=sys.executable, number=number, compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    os.environ["PATH"] = f"{compiler.parent}:{os.environ['PATH']}"
    os.setsid()  # a process group of its own, as under torchrun


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Callable[[str], dict[str, Tensor]]:
    """The final weights of the undisturbed run for a moment."""

    @functools.cache
    def weights(moment: str) -> dict[str, Tensor]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert execute(configured(folder, shards, moment, "trainer.compile=false")) == 0
        return final_weights(folder)

    return lambda moment: weights("compile" if moment == "compile" else "")


@pytest.mark.parametrize(("world", "number", "moment"), TABLE)
def test_a_request_to_stop_at_any_moment_saves_and_continues(
    tmp_path: Path, shards: Path, whole: Callable[[str], dict[str, Tensor]], world: int, number: int, moment: str
) -> None:
    run = tmp_path / "run"
    file = configured(run, shards, moment)
    assert launch(world, signalled, file, number, moment) == [STOPPED] * world
    assert moment == "loading" or status(run)["state"] == "stopped"
    if moment == "compile":
        assert (tmp_path / "bin" / "g++.called").exists()
        assert status(run)["step"] == world, "two ranks agree a step later"
    assert launch(world, continued, file) == [0] * world
    tolerance = 0 if world == 1 and moment != "compile" else 1e-4
    assert difference(final_weights(run), whole(moment)) <= tolerance


def with_child() -> tuple[bool, int]:
    """Whether this process heard of the signals at once, and how a process ended that it had started."""
    os.setsid()
    stop = StopSignal(World())
    with sheltered():
        child = subprocess.Popen(["sleep", "1"])
        for number in SIGNALS:
            os.killpg(0, number)
        deadline = time.monotonic() + 60
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        return stop.requested, child.wait()


def test_what_a_sheltered_run_has_started_does_not_hear_the_signals_that_it_hears() -> None:
    assert launch(1, with_child) == [(True, 0)]


def test_what_may_compile_is_sheltered_from_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = []

    def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
        def called(*batch: Any) -> Any:
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return fn(*batch)

        return called

    monkeypatch.setattr(torch, "compile", compiled)
    train(make_config("adversary", "trainer.compile=true"), steps=1)
    assert blocked and all(set(SIGNALS) <= signals for signals in blocked)
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


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
    assert process.wait(250) == 128 + number
    assert time.monotonic() - begin < 60  # its step takes five minutes


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
    deadline = time.monotonic() + 240
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
    assert process.wait(300) == 0, sys.executable
    assert status(tmp_path / "run")["state"] == "finished"
