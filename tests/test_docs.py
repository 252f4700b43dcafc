"""Pages of the documentation that are programs: the model of docs/adding_a_model.md, and the notebook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from omegaconf import OmegaConf

import dtrain.models
from dtrain import compose as configs
from dtrain.config import CONFIGS
from dtrain.run import run
from dtrain.trained import load
from tests import harness, test_models
from tests.golden import curves
from tests.runs import ROOT, metrics, write_shards


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def my_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model of the page, its files beside the project's own as if they lay among them."""
    (tmp_path / "models").mkdir()
    (module,), (configuration,) = blocks("adding_a_model.md", "python"), blocks("adding_a_model.md", "yaml")
    (tmp_path / "models" / "my_vae.py").write_text(module)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "model" / "my_vae.yaml").write_text(configuration)
    monkeypatch.setattr(dtrain.models, "__path__", [*dtrain.models.__path__, str(tmp_path / "models")])
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    for table, line in zip((harness.MODELS, curves.CURVES), blocks("adding_a_model.md", "text"), strict=True):
        monkeypatch.setitem(table, "my_vae", eval("{" + line + "}", vars(harness))["my_vae"])
    return "my_vae"


def test_the_model_of_the_page_trains_and_keeps_the_contract(my_vae: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shape=(1, 28, 28))
    cfg = configs.compose([
        f"model={my_vae}", f"data.path={tmp_path / 'shards'}", f"run.dir={tmp_path / 'run'}", "trainer.max_steps=5",
        "trainer.batch_size=16", "trainer.log_every=1", "evaluate.samples=4", "evaluate.rows=2", "evaluate.points=20",
    ])  # fmt: skip
    assert run(configs.read(cfg), OmegaConf.to_yaml(cfg, resolve=True)) == 0
    losses = [line["loss/all"] for line in metrics(tmp_path / "run", "train")]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert load(tmp_path / "run").sample(3).shape == (3, 1, 28, 28)

    test_models.test_groups_partition_the_parameters(my_vae)
    test_models.test_two_steps_are_finite_and_every_update_moves_exactly_its_groups(my_vae, tmp_path)
    test_models.test_evaluation_methods_have_the_promised_shapes(my_vae)
    test_models.test_state_round_trips_exactly(my_vae, tmp_path)
    assert all("heldout/kl" in line for line in curves.curve(my_vae))


FIVE = "model.levels=[" + ",".join(f"{{hidden:8,latent:{d}}}" for d in (6, 5, 4, 3, 2)) + "]"


def test_the_notebook_runs(tmp_path: Path) -> None:
    """From its own folder, beside short runs in the places of those that it tells the reader to make."""
    shards, folder = tmp_path / "shards" / "digits", tmp_path / "docs" / "notebooks"
    write_shards(shards, shape=(1, 28, 28))
    tiny = [
        "trainer.max_steps=2", "trainer.batch_size=16", "evaluate.samples=4", "evaluate.points=20", "evaluate.rows=2",
        "evaluate.grid=2",
    ]  # fmt: skip
    for name, chosen in (
        ("quickstart", ["experiment=quickstart", FIVE]),
        ("wae", ["model=wae_mmd", "data=digits", "model.width=2"]),
    ):
        cfg = configs.compose([*chosen, *tiny, f"data.path={shards}", f"run.dir={tmp_path / 'runs' / name}"])
        assert run(configs.read(cfg), OmegaConf.to_yaml(cfg, resolve=True)) == 0
    folder.mkdir(parents=True)
    notebook = jupytext.read(ROOT / "docs" / "notebooks" / "quickstart.py")
    NotebookClient(
        notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "level 5:  2 numbers a digit" in printed and "WAE-MMD: mse 0." in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
