"""data=folder: a folder of images of one's own, prepared, trained on and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from data_prep.__main__ import main as prepare
from dtrain import compose as configs
from dtrain.config import ConfigError, run_dir
from dtrain.evaluate.pictures import latents
from dtrain.evaluate.stored import opened
from dtrain.run import run
from launch.points import make_points

SMALL = (
    "model=wae_mmd", "model.width=2", "trainer.batch_size=8", "trainer.max_steps=2", "evaluate.samples=4",
    "evaluate.rows=2", "evaluate.points=8",
)  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Shards of forty photographs of two classes, of other sizes and sides than those they are brought to."""
    rng = np.random.default_rng(0)
    for name in ("lake$", "hill$"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (30, 40 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    shards = tmp_path / "shards" / "mine"
    assert prepare(["folder", "--source", str(tmp_path / "photos"), "--size", "24", "--out", str(shards)]) == 0
    return shards


def test_one_key_names_the_data_and_the_run_carries_its_name(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = configs.compose(["model=wae_mmd", "data=folder", "data.path=shards/mine"])
    assert run_dir(configs.read(plain)) == Path("runs/wae_mmd-mine")
    cfg = configs.compose([*SMALL, "data=folder", "data.path=shards/mine/"])
    config = configs.read(cfg)
    assert run_dir(config).name.startswith("wae_mmd-mine-")
    assert run(config, OmegaConf.to_yaml(cfg, resolve=True)) == 0
    frozen = configs.load(run_dir(config) / "config.yaml").data
    assert (frozen.name, frozen.image_shape) == ("mine", [3, 24, 24])

    with opened(config, run_dir(config)) as (_, evaluator), torch.no_grad():
        key = latents(evaluator.valid)["latents"].axes[-1].get_legend()
    assert [text.get_text() for text in key.get_texts()] == ["hill$", "lake$"]


def test_points_of_a_sweep_carry_it_too(mine: Path, tmp_path: Path) -> None:
    points, _ = make_points([*SMALL, "data=folder", f"data.path={mine}", "seed=0,1"], 1, tmp_path / "known")
    assert [p.run.name for p in points] == [f"wae_mmd-mine-{p.signature}" for p in points]
    assert {p.config.data.image_shape for p in points} == {(3, 24, 24)}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "data.path: is not set"),
        (["data.path=shards/none"], "data.path=shards/none: no shards in shards/none/train"),
        (["data.path=shards/none", "data.name=x", "data.pth=y"], "did you mean 'path'"),
    ],
)
def test_what_is_not_prepared_is_said_in_a_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose(["data=folder", *overrides])
    assert said in str(refused.value)
    assert "interpolation" not in str(refused.value)
