"""trainer.deterministic: what it sets, in processes of their own, and what cannot run under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dtrain.config import signature
from tests.harness import make_config
from tests.runs import ROOT, environment, freeze, status

# A fresh process's settings, those that a run without the key leaves, and those with it.
FLAGS = """
import os, torch
from pathlib import Path
from tests.runs import execute

def flags():
    cudnn = torch.backends.cudnn
    named = [os.environ.get(k) for k in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO")]
    return [torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, *named]

before = flags()
for file, wanted in ((%r, before), (%r, [True, True, False, ":4096:8", "Ring"])):
    assert execute(Path(file)) == 0
    assert flags() == wanted, flags()
"""

# Two steps of each of some models, dense and convolutional, twice.
TWICE = """
import torch
from dtrain.world import start
from tests.harness import Session, make_config

world = start("cpu", deterministic=True)
for model in ("stackedwae", "swae", "vampprior", "alice"):
    sessions = [Session(make_config(model), world, double=False) for _ in range(2)]
    before = sessions[0].weights()
    for session in sessions:
        session.steps(2)
    a, b = (s.weights() for s in sessions)
    assert all(torch.equal(a[k], b[k]) for k in a), model
    assert any(not torch.equal(a[k], before[k]) for k in a), model
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())


def check(script: str) -> None:
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_a_run_sets_the_flags_and_one_without_the_key_leaves_them(tmp_path: Path, shards: Path) -> None:
    common = ("trainer.max_steps=2", f"data.path={shards}")
    plain, fixed = (
        freeze(tmp_path / name, shards, *common, f"trainer.deterministic={name}") for name in ("false", "true")
    )
    check(FLAGS % (str(plain), str(fixed)))


def test_models_train_under_it_and_twice_to_the_same_bits() -> None:
    check(TWICE)


def test_an_operation_without_a_deterministic_kernel_is_named(tmp_path: Path, shards: Path) -> None:
    model = {"_target_": "tests.poison.Poisoned", "puts": True}
    file = freeze(tmp_path / "run", shards, "trainer.deterministic=true", model=model)
    script = f"import sys\nfrom dtrain.__main__ import main\nsys.exit(main(['--config', {str(file)!r}]))"
    done = python(script)
    assert done.returncode == 2
    assert done.stderr == "dtrain: trainer.deterministic=true: this run needs put_, which is not; set it to false\n"
    assert status(tmp_path / "run")["state"] == "failed"


def test_it_is_the_same_run() -> None:
    one, other = (make_config("stackedwae", f"trainer.deterministic={d}") for d in ("true", "false"))
    assert signature(one) == signature(other)
