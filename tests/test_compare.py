"""Runs side by side: numbers against the runs' own files, refusals, and the picture."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dtrain import compose as configs
from dtrain.build import build_algorithm, facts, open_data
from dtrain.compare import papers
from dtrain.compare.__main__ import main
from dtrain.compare.runs import Run, read_run
from dtrain.data.order import Order
from dtrain.evaluate import pages
from dtrain.evaluate.evaluator import DISTANCES, OF_CLASSES
from dtrain.evaluate.extractors import DigitClassifier
from dtrain.metrics import OF_SAMPLES, by_prior
from dtrain.models.vae import VAE as VAEModel
from tests.runs import evaluations, execute, freeze, write_shards

STEPS, INNER = 6, 3
SWAE = {
    "_target_": "dtrain.models.swae.SWAE", "code_dim": 3, "latent_dim": 3, "width": 4, "critic_width": 4, "hidden": 8,
    "priors": ["normal", "uniform"], "inner_steps": INNER,
}  # fmt: skip
VAE = {"_target_": "dtrain.models.vae.VAE", "latent_dim": 3, "width": 4}
WITHOUT = ("kind", "step", "time", "split", "epoch")


def train(folder: Path, name: str, model: dict[str, Any], *overrides: str, shards: str = "shards") -> None:
    settings = (
        "data.name=mnist", "data.image_shape=[1,28,28]", f"trainer.max_steps={STEPS}", f"run.root={folder}",
        "trainer.log_every=2", "evaluate.fidelity=digits", "evaluate.fidelity_samples=16",
        f"evaluate.digit_classifier={folder / 'classifier.pt'}",
    )  # fmt: skip
    assert execute(freeze(folder / name, folder / shards, *settings, *overrides, model=model)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """swae0 and swae1, of two seeds, and vae on the same images; other on other ones."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    torch.save({"weights": DigitClassifier().state_dict(), "accuracy": 0.1}, folder / "classifier.pt")
    write_shards(folder / "shards", shape=(1, 28, 28))
    write_shards(folder / "others", seed=1, shape=(1, 28, 28))
    for seed in (0, 1):
        train(folder, f"swae{seed}", SWAE, f"seed={seed}")
    train(folder, "vae", VAE)
    train(folder, "other", VAE, "trainer.max_steps=1", shards="others")
    return folder


@pytest.fixture(scope="module")
def compared(runs: Path) -> Path:
    out = runs / "compare"
    assert main([str(runs / name) for name in ("swae1", "swae0", "vae")] + ["--out", str(out)]) == 0
    return out


def lines(out: Path) -> dict[tuple[str, str, str], pd.Series[Any]]:
    """The table's lines by (row, of, metric)."""
    frame = pd.read_csv(out / "compare.csv", keep_default_na=False, na_values={c: [""] for c in ("mean", "std")})
    return {(line["row"], line["of"], line["metric"]): line for _, line in frame.iterrows()}


def own(run: Path) -> dict[str, float]:
    """The metrics of the test split, from the run's file."""
    return {k: float(v) for k, v in evaluations(run, "test")[-1].items() if k not in WITHOUT}


def test_numbers_are_those_of_the_runs_with_mean_and_deviation_over_seeds(runs: Path, compared: Path) -> None:
    table = lines(compared)
    both, alone = [own(runs / "swae0"), own(runs / "swae1")], own(runs / "vae")
    assert {"isc/digits/normal", "isc/digits/uniform", "isc/digits/data", "mse/h0"} <= both[0].keys()
    for metric in both[0]:
        name, _, last = metric.rpartition("/")
        sampled = metric.count("/") == 2
        key = (name, last) if sampled else (metric, "")
        row = "real data" if last == "data" else "swae0"
        line = table[row, key[1], key[0]]
        assert line["mean"] == pytest.approx(statistics.fmean(m[metric] for m in both), rel=1e-6)
        if last != "data":
            assert line["std"] == pytest.approx(statistics.stdev(m[metric] for m in both), rel=1e-6, abs=1e-12)
            assert line["n"] == 2 and line["runs"] == "swae0 swae1"
    assert table["vae", "", "mse/level1"]["mean"] == alone["mse/level1"]
    assert table["vae", "normal", "isc/digits"]["mean"] == alone["isc/digits/normal"]
    assert table["vae", "normal", "isc/digits"]["n"] == 1 and math.isnan(table["vae", "", "mse/level1"]["std"])
    mse = [m["mse/h0"] for m in both]
    assert f"{statistics.fmean(mse):.4g} ± {statistics.stdev(mse):.2g}" in (compared / "compare.md").read_text()


def test_parameters_updates_and_images_are_counted(runs: Path, compared: Path) -> None:
    table = lines(compared)
    config = configs.read(configs.load(runs / "swae0" / "config.yaml"))
    algorithm = build_algorithm(config, facts(open_data(config)[0]))
    total = 0
    for group, paths in algorithm.groups.items():
        size = sum(p.numel() for path in paths for p in algorithm.get_submodule(path).parameters())
        total += size
        assert table["swae0", group, "parameters"]["mean"] == size
        inner = INNER if "2_" in group else 1
        assert table["swae0", group, "updates"]["mean"] == inner * STEPS
    assert table["swae0", "", "parameters"]["mean"] == total
    assert table["swae0", "", "images"]["mean"] == table["vae", "", "images"]["mean"] == STEPS * 16
    assert table["vae", "autoencoder", "updates"]["mean"] == STEPS


def read(run: Path) -> Run:
    return read_run(run, run.name, "test", [], [])


def test_the_picture_has_a_strip_for_each_row_on_the_same_inputs(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    show = pages.show
    monkeypatch.setattr(pages, "show", lambda found, title: drawn.extend(found) or show(found, title))
    names = [str(runs / name) for name in ("swae0", "swae1", "vae")]
    assert main([*names, "--out", str(tmp_path), "evaluate.rows=3"]) == 0
    assert (tmp_path / "compare.png").is_file()
    assert [caption.partition(":")[0] for caption, _ in drawn] == ["held-out images", "swae0", "vae"]
    tiles = [((page.shape[0] - 1) // 29, (page.shape[1] - 1) // 29) for _, page in drawn]
    assert tiles == [(1, 3), (3, 3), (2, 3)]  # rows of reconstructions and of each prior's samples
    images = np.load(runs / "shards" / "test" / "images.npy") / 255
    held_out = images[Order(len(images)).permutation(0)[0]]  # as every evaluation reads them
    np.testing.assert_allclose(drawn[0][1][1:29, 1:29], held_out, atol=1e-6)
    drawn.clear()
    monkeypatch.setattr(VAEModel, "priors", lambda self, condition=None: {})
    assert main([names[2], "--out", str(tmp_path)]) == 0
    (_, (caption, page)) = drawn
    assert caption.endswith("no generative model") and (page[30:] == 1).all() and page.shape[0] == 2 * 29 + 1


def copied(runs: Path, tmp_path: Path, name: str, run: str = "swae1") -> Path:
    return Path(shutil.copytree(runs / run, tmp_path / name))


def test_names_are_inert_and_runs_may_come_from_elsewhere(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(runs, tmp_path, "a|b <script>alert(1) $x$ \x1b[31m")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"path: {runs / 'shards'}", "path: here"))
    (tmp_path / "here").symlink_to(runs / "shards")
    monkeypatch.chdir(tmp_path)
    assert main([run.name, str(runs / "vae")]) == 0
    text = (tmp_path / "compare" / "compare.md").read_text()
    assert "<script>" not in text and "\x1b" not in text and "a&#124;b &lt;script&gt;" in text
    for block in text.split("\n## ")[1:]:
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) == 1


def test_a_seed_that_has_diverged_or_lacks_a_metric_shows(runs: Path, tmp_path: Path) -> None:
    run = copied(runs, tmp_path, "swae1")
    file = run / "metrics.jsonl"
    last = json.loads(file.read_text().splitlines()[-1])
    changed = last | {"mse/h0": "nan", "only/here": 1.5, "isc/digits/data": 2.0}
    file.write_text(file.read_text() + json.dumps(changed) + "\n")
    assert main([str(runs / "swae0"), str(run), "--out", str(tmp_path), "--table-only"]) == 0
    table = lines(tmp_path)
    assert math.isnan(table["swae0", "", "mse/h0"]["mean"]) and "nan" in (tmp_path / "compare.md").read_text()
    assert table["swae0", "", "only/here"]["n"] == 1 and "1.5 (n = 1)" in (tmp_path / "compare.md").read_text()
    assert ("swae0", "data", "isc/digits") in table and ("real data", "data", "isc/digits") not in table
    assert ("real data", "data", "fid/digits") in table and not (tmp_path / "compare.png").exists()


def test_a_sweeps_folder_stands_for_its_runs_and_tables_take_any_data(runs: Path, tmp_path: Path) -> None:
    values = {
        "swae0": {"seed": 0, "model": "table/swae"}, "swae1": {"seed": 1, "model": "table/swae"},
        "other": {"seed": 0, "trainer.max_steps": 1, "width": 8},
    }  # fmt: skip
    points = [{"run": str(runs / name), "values": found} for name, found in values.items()]
    (tmp_path / "sweep.json").write_text(json.dumps({"points": points}))
    assert main([str(tmp_path), str(runs / "vae"), "--table-only", "--out", str(tmp_path)]) == 0
    table = lines(tmp_path)
    other = "trainer.max_steps=1, width=8"
    assert {row for row, _, _ in table} == {"swae", other, "vae"}  # no real data that all have in common
    assert table[other, "data", "isc/digits"]["mean"] == own(runs / "other")["isc/digits/data"]
    assert table["swae", "", "mse/h0"]["n"] == 2 and table["vae", "", "mse/level1"]["n"] == 1


def unfinished(run: Path) -> None:
    (run / "status.json").write_text('{"state": "running"}')


def without_evaluation(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text("".join(x + "\n" for x in file.read_text().splitlines() if '"test"' not in x))


def damaged_checkpoint(run: Path) -> None:
    next(run.glob("checkpoints/step-*/__0_0.distcp")).write_bytes(b"")


def of_another_step(run: Path) -> None:
    file = run / "metrics.jsonl"
    last = json.loads(file.read_text().splitlines()[-1])
    file.write_text(file.read_text() + json.dumps(last | {"step": 4}) + "\n")


def without_data(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("shards", "gone"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run folder"),
        (lambda run: (run / "config.yaml").write_text("{"), "is no configuration file"),
        (unfinished, r"is not finished \(running\): wait for it"),
        (lambda run: (run / "status.json").write_text("{"), "status.json is missing or damaged"),
        (lambda run: (run / "environment.json").unlink(), "environment.json is missing or damaged"),
        (without_evaluation, "has no evaluation of its result on test: python -m dtrain.evaluate"),
        (damaged_checkpoint, "is damaged"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint"),
        (of_another_step, "the last evaluation is of step 4, the weights are of step 6"),
        (without_data, "prepare the shards with"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    damage: Callable[[Path], Any], said: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(runs, tmp_path, "copy")
    damage(run)
    refused([runs / "vae", run], said, tmp_path, capsys)


def test_runs_that_do_not_go_together_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = runs / "vae"
    refused([vae, runs / "other"], "was trained on other data .* than .*other", tmp_path, capsys)
    refused([vae, copied(runs, tmp_path, "copy", "vae")], "are the same configuration and seed", tmp_path, capsys)
    (tmp_path / "sweep.json").write_text("{}")
    refused([tmp_path], r"sweep.json is damaged", tmp_path, capsys)
    write_shards(tmp_path / "small", shape=(1, 24, 24))
    file = freeze(
        tmp_path / "small24", tmp_path / "small", "data.image_shape=[1,24,24]", "trainer.max_steps=1", model=VAE
    )
    assert execute(file) == 0
    refused([vae, tmp_path / "small24"], "has images of 1x28x28, .*small24 of 1x24x24", tmp_path, capsys)


def refused(found: list[Path], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*map(str, found), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and str(found[-1]) in error
    assert re.search(said, error)
    assert not list(tmp_path.glob("out/*"))


def test_every_number_of_samples_is_known_as_such() -> None:
    assert {*DISTANCES, *OF_CLASSES} < set(OF_SAMPLES)
    assert by_prior("isc/digits/normal") == ("isc/digits", "normal") and by_prior("hue_match/data")[1] == "data"
    assert by_prior("mse/normal") == ("mse/normal", "")


def test_papers_stand_beside_with_what_differs(runs: Path, compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = lines(compared)
    line = table["swae0", "uniform", "isc/digits"]
    assert line["paper"] == "8.91 (000, table 1)"
    for reason in ("extractor the digit classifier of ALICE's authors, not digits", "16 samples, not 10000"):
        assert reason in line["same_protocol"]
    assert line["same_protocol"].startswith("no: ") and "networks not public" in line["same_protocol"]
    assert table["swae0", "", "mse_symmetric/normal"]["paper"].startswith("0.01 ")
    for nothing in (("swae0", "", "mse_symmetric/h0"), ("swae0", "", "mse/normal"), ("vae", "normal", "isc/digits")):
        assert table[nothing]["paper"] == ""
    protocol = {"extractor": "digits", "samples": 16, "epochs": 1, "networks": {"model.width": 4}}
    row = {"model": "VAE", "metric": "isc", "value": 2}
    monkeypatch.setattr(
        papers,
        "_tables",
        lambda: [{"paper": "001", "table": 1, "data": "mnist", "rows": [row], "protocol": protocol}],
    )
    vae = read(runs / "vae")
    assert list(papers.printed(vae, "isc/digits", "normal", "test")) == [("2 (001, table 1)", papers.YES)]
    assert [same for _, same in papers.printed(vae, "isc/digits", "normal", "valid")] == ["no: validation split"]
    protocol |= {"networks": {"model.width": 64}, "epochs": 25}
    ((_, same),) = papers.printed(vae, "isc/digits", "normal", "test")
    assert same == "no: 1 epochs, not 25, model.width=4, not 64"
