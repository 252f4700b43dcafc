"""python -m dtrain.export: a model without its run, which dtrain.load reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dtrain
from dtrain.config import ConfigError
from tests.harness import SHAPE
from tests.runs import ROOT, execute, freeze, write_shards


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that averages its weights, and what the command makes of it."""
    folder = tmp_path_factory.mktemp("exported")
    write_shards(folder / "shards")
    file = freeze(folder / "run", folder / "shards", "trainer.max_steps=10", "optim.default.ema=0.9")
    assert execute(file) == 0
    result = command(folder / "run", folder / "out", "--to", "torch-export", "--licence", "MIT")
    assert result.returncode == 0, result.stderr
    shutil.rmtree(folder / "shards")
    return folder / "run", folder / "out"


def command(run: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "dtrain.export", str(run), "--out", str(out), *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_an_exported_model_is_the_runs(exported: tuple[Path, Path]) -> None:
    run, out = (dtrain.load(folder) for folder in exported)
    assert torch.equal(run.sample(5, seed=2), out.sample(5, seed=2))
    assert (out.step, out.metrics) == (10, run.metrics) and out.metrics["test"]
    for a, b in zip(run.algorithm.parameters(), out.algorithm.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_card_names_data_metrics_and_licence_and_no_machine(exported: tuple[Path, Path]) -> None:
    run, out = exported
    card = (out / "README.md").read_text()
    digest = dtrain.load(run).metrics["test"]["mse/level1"]
    assert "Licence: MIT" in card and f"{digest:.5g}" in card and "- train: sha256 " in card
    for file in ("README.md", "config.yaml", "environment.json"):
        assert str(run) not in (out / file).read_text()


def test_programs_need_torch_alone(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = exported
    x = torch.rand(3, *SHAPE)
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import sys, torch
encoder, decoder = (torch.export.load(f"{out}/{{n}}.pt2").module() for n in ("encoder", "decoder"))
z = encoder(torch.load("x.pt"))
torch.save((z, decoder(z)), "y.pt")
assert not any(name.startswith("dtrain") for name in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    codes, images = torch.load(tmp_path / "y.pt")
    trained = dtrain.load(run)
    torch.testing.assert_close(codes, trained.encode(x))
    torch.testing.assert_close(images, trained.reconstruct(x))


def test_a_folder_that_exists_is_left_alone(exported: tuple[Path, Path]) -> None:
    run, out = exported
    before = sorted(f.name for f in out.iterdir())
    result = command(run, out)
    assert result.returncode == 2 and "exists; choose another folder" in result.stderr
    assert sorted(f.name for f in out.iterdir()) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_weights_are_refused(damage: str, exported: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(exported[1], tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    if damage == "other":
        text = (tmp_path / "out" / "config.yaml").read_text()
        (tmp_path / "out" / "config.yaml").write_text(text.replace("hidden: 32", "hidden: 31"))
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -10])
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        dtrain.load(tmp_path / "out")
