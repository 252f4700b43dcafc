"""dtrain.load: the result of a run, to use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from matplotlib import image
from torch import Tensor

import dtrain
from dtrain.checkpoint import steps
from dtrain.config import ConfigError
from dtrain.noise import Noise
from tests.harness import SHAPE
from tests.runs import execute, freeze, write_shards

SUPERVISED = {
    "_target_": "dtrain.models.learned_prior_aae.LearnedPriorAAE", "mode": "supervised", "code_dim": 13, "width": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StackedWAE that keeps averages of its weights; the data that it was trained on is gone."""
    folder = tmp_path_factory.mktemp("trained")
    write_shards(folder / "shards")
    assert execute(freeze(folder / "run", folder / "shards", "optim.default.ema=0.9")) == 0
    shutil.rmtree(folder / "shards")
    return folder / "run"


def read(path: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint."""
    state: dict[str, Tensor] = {}
    table = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state |= {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in table.items()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def test_samples_are_those_of_the_runs_picture(run: Path) -> None:
    """Every pixel: the samples, drawn as samples.png is drawn, are samples.png."""
    from dtrain.evaluate.pages import close, show, tile

    trained = dtrain.load(run)
    page = tile(trained.sample(4).permute(0, 2, 3, 1).numpy(), 2)
    show([("prior: chain", page)], "4 samples from the model").savefig(
        run / "again.png", dpi=110, bbox_inches="tight"
    )
    close()
    drawn, again = image.imread(run / "images" / "samples.png"), image.imread(run / "again.png")
    np.testing.assert_array_equal(drawn, again)


def test_the_weights_are_the_averages_that_evaluation_uses(run: Path) -> None:
    trained, stored = dtrain.load(run), read(steps(run / "checkpoints")[-1])
    weights = {f"average.{k}": v for k, v in trained.algorithm.named_parameters()}
    assert weights and all(torch.equal(v, stored[k]) for k, v in weights.items())
    assert any(not torch.equal(v, stored[k.replace("average", "model")]) for k, v in weights.items())
    assert not trained.algorithm.training and trained.step == 40


def test_images_are_floats_or_bytes(run: Path) -> None:
    trained = dtrain.load(run)
    x = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    for level in (1, 2, 3):
        codes = trained.encode(x, level)
        torch.testing.assert_close(codes, trained.encode(x.float() / 255, level))
        torch.testing.assert_close(trained.reconstruct(x, level), trained.decode(codes, level))
    between = trained.interpolate(x[:2], x[1:], steps=5)
    assert between.shape == (2, 5, *SHAPE)
    torch.testing.assert_close(between[:, 0], trained.reconstruct(x[:2]))
    torch.testing.assert_close(between[:, -1], trained.reconstruct(x[1:]))
    with pytest.raises(ConfigError, match=r"images must be \[B, 1, 6, 6\], got \[3, 6, 6\]"):
        trained.encode(x[:, 0])
    with pytest.raises(ConfigError, match=r"floats in \[0, 1\]"):
        trained.encode(x.float())
    with pytest.raises(ConfigError, match="level=4: StackedWAE has 1 to 3"):
        trained.decode(torch.zeros(1, 2), 4)


def test_a_sample_depends_on_seed_and_place_alone(run: Path) -> None:
    trained = dtrain.load(run)
    whole = trained.sample(70, seed=3)
    assert whole.shape == (70, *SHAPE) and float(whole.min()) >= 0 and float(whole.max()) <= 1
    torch.testing.assert_close(trained.sample(10, seed=3, start=60), whole[60:])
    assert not torch.equal(trained.sample(70, seed=4), whole)
    with pytest.raises(ConfigError, match="prior=gmm: StackedWAE has chain"):
        trained.sample(1, prior="gmm")
    with pytest.raises(ConfigError, match="conditioned on nothing"):
        trained.sample(1, condition=3)


def test_metrics_and_configuration_come_along(run: Path) -> None:
    trained = dtrain.load(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    test = next(m for m in lines if m.get("split") == "test")
    assert trained.metrics["test"]["mse/level1"] == test["mse/level1"]
    assert trained.config.trainer.max_steps == 40


def test_a_checkpoint_of_a_run_is_loaded_by_its_own_path(run: Path) -> None:
    earlier = steps(run / "checkpoints")[0]
    trained = dtrain.load(earlier)
    assert trained.step == int(earlier.name.split("-")[1]) < 40
    assert not torch.equal(trained.sample(1), dtrain.load(run).sample(1))


def test_conditional_samples(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shape=(1, 24, 24))
    small = ("data.image_shape=[1,24,24]", "trainer.max_steps=1")
    assert execute(freeze(tmp_path / "run", tmp_path / "shards", *small, model=SUPERVISED)) == 0
    trained = dtrain.load(tmp_path / "run")
    assert trained.priors == ["learned"]
    threes = trained.sample(3, condition=3)
    torch.testing.assert_close(threes, trained.sample(3, condition=[3, 3, 3]))
    assert not torch.equal(threes, trained.sample(3, condition=4))
    with pytest.raises(ConfigError, match="conditioned on labels"):
        trained.sample(3)
    with pytest.raises(ConfigError, match="give 1 or 3 rows for 3 samples, got 2"):
        trained.sample(3, condition=[1, 2])


def test_what_is_no_run_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        dtrain.load(tmp_path)
    shutil.copytree(run, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint that verifies"):
        dtrain.load(tmp_path / "empty")


def test_a_foreign_run_executes_nothing(run: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(run, forged)
    text = (forged / "config.yaml").read_text()
    (forged / "config.yaml").write_text(text.replace("dtrain.models.stackedwae.StackedWAE", "os.system"))
    with pytest.raises(ConfigError, match="of the module os: if you trust it"):
        dtrain.load(forged)


def test_the_package_loads_torch_only_when_asked() -> None:
    code = "import sys, dtrain; assert 'torch' not in sys.modules; dtrain.load; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_noise_of_samples_is_the_evaluations(run: Path) -> None:
    trained = dtrain.load(run)
    with torch.no_grad():
        expected = trained.algorithm.sample(Noise.of(5))
    torch.testing.assert_close(trained.sample(5), expected)
