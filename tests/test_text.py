"""Sentences in an evaluation: pictures of one, of one in every colour, and the hues that samples have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.arrays import array_source
from data_prep.captions import from_templates
from data_prep.embed import from_file, with_embeddings
from data_prep.source import Source
from data_prep.writer import write_split
from dtrain.config import ConfigError, parse
from dtrain.data.build import build_loader
from dtrain.data.sentences import ENCODER, installed
from dtrain.data.shards import open_split
from dtrain.evaluate.hue_match import hue_match
from dtrain.evaluate.preflight import check_text
from dtrain.evaluate.text import of_sentence
from dtrain.hues import COLOURS, PLACE, colour_word, with_colours
from dtrain.models.base import DataFacts
from dtrain.world import start
from tests.harness import evaluation_of, make_config
from tests.processes import launch
from tests.runs import ROOT, evaluations, execute, freeze
from tests.sentences import Deaf, Painter

needs_encoder = pytest.mark.skipif(not installed(), reason="no sentence encoder")
HUES = {"red": (220, 20, 20), "yellow": (240, 220, 20), "blue": (30, 60, 220), "white": (240, 240, 240)}


def flowers(count: int, seed: int) -> Source:
    """Flat images of 8 x 8 in four hues, of classes rose and lily, captioned by templates."""
    rng = np.random.default_rng(seed)
    colours = np.array(list(HUES.values()))[rng.integers(0, len(HUES), count)]
    images = np.broadcast_to(colours[:, None, None], (count, 8, 8, 3)).astype(np.uint8)
    source = array_source(images, rng.integers(0, 2, count), {"class_names": ["rose", "lily"]}, None, "flower")
    return from_templates(source, ["rose", "lily"])


def all_flowers() -> dict[str, Source]:
    return {"train": flowers(160, 0), "valid": flowers(40, 2), "test": flowers(40, 1)}


def write(folder: Path, splits: dict[str, Source]) -> Path:
    for name, source in splits.items():
        write_split(folder / name, source)
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 + 40 + 40 flowers with embeddings by the encoder."""
    return write(tmp_path_factory.mktemp("embedded"), with_embeddings(all_flowers()))


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same flowers; the embeddings are their hues, from a file."""
    folder, splits = tmp_path_factory.mktemp("foreign"), all_flowers()
    found = {}
    for name, source in splits.items():
        hues = np.stack([source.read(i)[0, 0] for i in range(len(source))]) / 255
        np.save(folder / f"{name}.npy", hues[np.argsort(source.names)])
        found[name] = from_file({name: source}, folder / f"{name}.npy")[name]
    return write(folder, found)


def trained(run: Path, shards: Path, *overrides: str, painter: type[Painter] = Painter) -> Path:
    """A finished run that has learnt the hues of its sentences."""
    model = {"_target_": f"tests.sentences.{painter.__name__}"}
    more = ("data.image_shape=[3,8,8]", "optim.default.lr=0.05", "trainer.max_steps=200", "trainer.log_every=50")
    assert execute(freeze(run, shards, *more, "trainer.checkpoint.every=100", *overrides, model=model)) == 0
    return run


def evaluate(run: Path, *overrides: str, module: str = "tests.sentences") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dtrain.evaluate", str(run), "--model", module, *overrides],
        capture_output=True, text=True, check=False, timeout=600, cwd=ROOT,
    )  # fmt: skip


@needs_encoder
def test_a_sentence_is_drawn_and_swept_through_the_colours(tmp_path: Path, embedded: Path) -> None:
    run = trained(tmp_path / "run", embedded)
    (first,) = evaluations(run)
    assert first["hue_match/data"] == 1.0 and first["hue_match/painted"] > 0.9
    assert first["hue_chance/painted"] < 0.5
    assert not (run / "images" / "text.png").exists()
    result = evaluate(run, "text=this flower is red: {with} $5 and ${petals}")
    assert result.returncode == 0, result.stderr
    with Image.open(run / "images" / "text.png") as image:
        rgb = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    coloured = rgb[np.ptp(rgb, axis=1) > 60]  # the paper is white, the title black
    assert len(coloured) > 10_000 and (coloured[:, 0] > coloured[:, 2] + 60).mean() > 0.95
    assert (run / "images" / "text_colours.png").is_file()
    (run / "images" / "text.png").unlink()
    result = evaluate(run, "evaluate.text=a {colour} rose")
    assert result.returncode == 0, result.stderr
    assert not (run / "images" / "text.png").exists()  # no sentence, but nine
    refused = evaluate(run, "text= ")
    assert refused.returncode == 2 and "one line of 1 to 500 characters" in refused.stderr


@needs_encoder
def test_the_sweep_has_a_column_for_each_colour_and_a_row_for_each_noise(embedded: Path) -> None:
    torch.manual_seed(0)
    config = make_config("vae", "evaluate.rows=2", "evaluate.text='a red rose'")
    painter = Painter(DataFacts((3, 8, 8), embedding=384)).eval()
    loader: Any = build_loader(
        "resident", open_split(embedded / "test"), batch_size=16, value_range=painter.value_range
    )
    with torch.no_grad():
        figures = of_sentence(evaluation_of(painter, loader, loader, start("cpu"), config.evaluate))
    assert set(figures) == {"text", "text_colours"}
    axes = figures["text_colours"].axes
    assert [a.get_title(loc="left") for a in axes] == list(COLOURS)
    assert all(a.images[0].get_array().shape == (2 * 9 + 1, 10, 3) for a in axes)
    assert figures["text"].get_suptitle() == "a red rose"


def test_sentences_are_refused_where_no_new_one_can_be_embedded(
    tmp_path: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", foreign)
    for arguments, message in (
        (("text=a red rose",), "come from no sentence encoder"),
        (("text=" + "a" * 501,), "one line of 1 to 500 characters"),
        (("text=a\nb",), "one line of 1 to 500 characters"),
    ):
        refused = evaluate(run, *arguments)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    settings, split = make_config("vae", "evaluate.text='a red rose'").evaluate, open_split(foreign / "train")
    for condition, said in (("labels", "conditioned on labels, not"), (None, "conditioned on nothing")):
        with pytest.raises(ConfigError, match=said):
            check_text(settings, condition, split)
    split.manifest["source"]["embeddings"] = {"encoder": ENCODER}
    monkeypatch.setattr("dtrain.evaluate.preflight.installed", lambda: False)
    with pytest.raises(ConfigError, match=r"dtrain\[embed\]"):
        check_text(settings, "embeddings", split)
    with pytest.raises(ConfigError, match="conditioned on nothing"):  # before anything is trained
        trained(tmp_path / "deaf", foreign, "evaluate.text=rose", painter=Deaf)
    assert not (tmp_path / "deaf").exists()


def matches(shards: Path, deaf: bool) -> dict[str, float]:
    """Of a painter whose sentences are hues already, or of one that hears nothing."""
    world = start("cpu", timeout=60)
    painter = (Deaf if deaf else Painter)(DataFacts((3, 8, 8), embedding=3)).eval()
    with torch.no_grad():
        painter.colour.weight.copy_(torch.eye(3))
        painter.colour.bias.zero_()
        split = open_split(shards / "test")
        loader: Any = build_loader(
            "resident", split, batch_size=16, value_range=painter.value_range, rank=world.rank, world=world.size
        )
        return hue_match(evaluation_of(painter, loader, loader, world, make_config("vae").evaluate))


@pytest.mark.parametrize("world", [1, 2])
def test_hues_match_where_samples_hear_their_captions(foreign: Path, world: int) -> None:
    for values in [matches(foreign, False)] if world == 1 else launch(world, matches, foreign, False):
        assert values["hue_match/data"] == values["hue_match/painted"] == 1.0
        assert 0.2 < values["hue_chance/data"] < 0.4
    assert matches(foreign, True) == {}


def test_a_run_can_be_judged_by_its_hues(tmp_path: Path, foreign: Path) -> None:
    run = trained(
        tmp_path / "run", foreign, "trainer.checkpoint.best=hue_match/painted", "trainer.evaluate_every=100"
    )
    assert evaluations(run)[-1]["hue_match/painted"] > 0.9


def test_the_colour_word_of_a_sentence() -> None:
    assert colour_word("This flower is RED, a red one.") == "red"
    for none in ("a black-eyed susan", "reddish petals", "red petals and white stamens", ""):
        assert colour_word(none) is None
    assert with_colours("a black-eyed flower") == []
    assert with_colours("Red petals, red stamens")[2] == "yellow petals, red stamens"
    assert with_colours(f"a {PLACE} rose, no red {PLACE} one") == [f"a {c} rose, no red {c} one" for c in COLOURS]


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a" * 501, 3])
def test_what_is_no_sentence_is_refused(text: object) -> None:
    content = make_config("vae").model_dump(mode="json")
    content["evaluate"]["text"] = text
    with pytest.raises(ConfigError, match=r"evaluate\.text"):
        parse(content)
