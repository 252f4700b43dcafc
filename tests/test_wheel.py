"""The wheel, in a virtual environment of its own and outside the source tree."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dtrain.config import CONFIGS
from tests.runs import ROOT

TINY = (
    "model=vae", "data=digits", "model.width=4", "trainer.max_steps=2", "trainer.log_every=1", "evaluate.points=20",
    "evaluate.grid=3", "evaluate.rows=2",
)  # fmt: skip
Call = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the source tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("dtrain", "launch", "data_prep", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", "."]
    subprocess.run([sys.executable, "-m", "pip", *build], cwd=source, check=True)
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def call(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs a command of the installed wheel in an empty folder; what it prints.

    The dependencies are this environment's: a path in a .pth file, whose own .pth files are not read, so that an
    editable installation stays out.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment = own | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    (folder / "here").mkdir()

    def called(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder / "here", env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return called


def test_the_wheel_holds_every_configuration_and_all_code(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"dtrain/configs/{f.relative_to(CONFIGS)}" for f in CONFIGS.rglob("*.yaml")}
    files = {f for p in ("dtrain", "launch", "data_prep") for f in (ROOT / p).rglob("*.*") if f.is_file()}
    code = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert len(configs) > 50 and configs <= held and code <= held
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == {"dtrain", "launch", "data_prep"}


def test_an_installed_wheel_prepares_trains_loads_and_sweeps(call: Call) -> None:
    loads = (
        "import dtrain, importlib.metadata as m; print(dtrain.__file__)\n"
        "for e in m.distribution('dtrain').entry_points: print(e.name, callable(e.load()))\n"
        "model = dtrain.load('runs/vae'); print(model.sample(4, seed=0).shape)"
    )
    assert "shards/digits/train: 3600 images" in call("dtrain-data", "digits")
    assert "finished" in call("dtrain", *TINY, "run.name=vae")
    file, *commands, shape = call("python", "-c", loads).splitlines()
    assert "/installed" in file and "/site-packages/dtrain/" in file and shape == "torch.Size([4, 1, 28, 28])"
    assert "dtrain-sweep True" in commands and len(commands) == 10

    swept = call("dtrain-sweep", "-m", *TINY, "seed=1", "sweep.where=local", "sweep.name=two", "--wait")
    sweep = next(word for word in swept.split() if word.startswith("two-")).rstrip(":")
    assert f"dtrain-jobs status {sweep}" in swept
    assert "all 1 points are finished" in call("dtrain-collect", sweep)
    assert call("sh", "-c", "ls; ls sweeps/*/code/*").split() == [
        "runs", "shards", "sweeps", "data_prep", "dtrain", "launch",
    ]  # fmt: skip
