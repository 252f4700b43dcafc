"""python -m dtrain.sample: PNG files that depend on weights, seed and place alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dtrain
from tests.runs import ROOT, execute, freeze, write_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled")
    write_shards(folder / "shards")
    assert execute(freeze(folder / "run", folder / "shards", "trainer.max_steps=5")) == 0
    return folder / "run"


def sample(run: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dtrain.sample", str(run), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def content(out: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in out.glob("*.png")}


def test_images_are_the_models_and_say_how_they_were_made(run: Path, tmp_path: Path) -> None:
    result = sample(run, tmp_path / "out", "--count", "70", "--seed", "3", "--npz")
    assert result.returncode == 0, result.stderr
    images = np.stack([np.asarray(Image.open(tmp_path / "out" / f"{n:08d}.png")) for n in range(70)])
    expected = (dtrain.load(run).sample(128, seed=3)[:70, 0] * 255).round().numpy()
    np.testing.assert_array_equal(images, expected)
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], images[..., None])
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert (protocol["count"], protocol["seed"], protocol["prior"], protocol["step"]) == (70, 3, "chain", 5)
    assert len(content(tmp_path / "out")) == 70


def test_processes_and_interruptions_change_no_byte(run: Path, tmp_path: Path) -> None:
    assert sample(run, tmp_path / "one", "--count", "130").returncode == 0
    assert sample(run, tmp_path / "two", "--count", "70").returncode == 0
    for n in (3, 64):  # as a kill leaves it
        (tmp_path / "two" / f"{n:08d}.png").unlink()
    result = sample(run, tmp_path / "two", "--count", "130", "--processes", "2")
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_images_are_not_mixed_in(run: Path, tmp_path: Path) -> None:
    assert sample(run, tmp_path / "out", "--count", "2").returncode == 0
    before = content(tmp_path / "out")
    other = sample(run, tmp_path / "out", "--count", "4", "--seed", "1")
    assert other.returncode == 2 and "holds images of seed=0, not 1" in other.stderr
    assert content(tmp_path / "out") == before
    foreign = sample(run, tmp_path, "--count", "2")
    assert foreign.returncode == 2 and "holds something else" in foreign.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", "0"), "must be at least 1"),
        (("--prior", "uniform"), "prior=uniform: StackedWAE has chain"),
        (("--condition", "3"), "conditioned on nothing"),
    ],
)
def test_a_wrong_request_is_refused_before_a_file_is_written(
    arguments: tuple[str, ...], message: str, run: Path, tmp_path: Path
) -> None:
    result = sample(run, tmp_path / "out", *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
