"""What is measured and drawn of conditional priors, in whole small runs and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.build import build_algorithm
from dtrain.compose import compose, read
from dtrain.data.batch import Batch
from dtrain.evaluate.conditional import categories, classified, mutual_information, names, purity
from dtrain.evaluate.extractors import DigitClassifier
from dtrain.models.base import DataFacts
from dtrain.models.learned_prior_aae import LearnedPriorAAE
from dtrain.noise import Noise
from dtrain.world import start
from tests.harness import evaluation_of
from tests.processes import launch
from tests.runs import evaluations, execute, freeze

LABELS = np.random.default_rng(0).integers(0, 3, 20)
FOUND = np.random.default_rng(1).integers(0, 4, 20)


def counts() -> Tensor:
    table = torch.zeros(4, 3, dtype=torch.float64)
    for found, label in zip(FOUND, LABELS, strict=True):
        table[found, label] += 1
    return table


def test_purity_and_mutual_information_against_hand_counts() -> None:
    """Category 0 has four of label 0 and one of label 1; category 1 two and three."""
    table = torch.tensor([[4.0, 1.0], [2.0, 3.0]]).double()
    assert purity(table) == pytest.approx(0.7)

    def entropy(*shares: float) -> float:
        return -sum(p * math.log(p) for p in shares)

    information = entropy(0.6, 0.4) + entropy(0.5, 0.5) - entropy(0.4, 0.1, 0.2, 0.3)
    assert mutual_information(table) == pytest.approx(information / ((entropy(0.6, 0.4) + entropy(0.5, 0.5)) / 2))
    assert mutual_information(counts()) == pytest.approx(normalized_mutual_info_score(LABELS, FOUND))
    assert purity(torch.eye(3)) == mutual_information(torch.eye(3)) == pytest.approx(1)
    assert mutual_information(torch.tensor([[5.0]])) == 0


class Share:
    """This rank's held-out rows, in batches of up to 4; the first pixel is the category that Q will find."""

    split = SimpleNamespace(arrays={"labels": LABELS})

    def __init__(self, rank: int, size: int) -> None:
        self.rows = torch.arange(20)[rank::size]

    def once(self) -> Any:
        for rows in self.rows.split(4):
            x = torch.from_numpy(FOUND)[rows].float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
            yield Batch(x, Noise.of(len(rows)), torch.from_numpy(LABELS)[rows])


class Shown(nn.Module):
    """In place of D_I: the middle pixel, one-hot."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, F.one_hot(x[:, 0, 16, 16].long(), 4).float()


def found_categories() -> tuple[dict[str, float], set[str]]:
    config = read(compose(["model=learned_prior_aae_unsupervised", "model.width=2", "model.categories=4"]))
    algorithm, world = build_algorithm(config, DataFacts((1, 28, 28))), start("cpu", timeout=60)
    assert isinstance(algorithm, LearnedPriorAAE)
    algorithm.image_critic, algorithm.q = Shown(), nn.Identity()  # type: ignore[assignment]
    evaluation = evaluation_of(algorithm, None, Share(world.rank, world.size), world, config.evaluate)
    return categories(evaluation), names(evaluation)


@pytest.mark.parametrize("world", [1, 2])
def test_categories_are_counted_over_the_whole_held_out_set(world: int) -> None:
    expected = {"purity": purity(counts()), "nmi": mutual_information(counts())}
    for values, known in [found_categories()] if world == 1 else launch(world, found_categories):
        assert values == pytest.approx(expected) and known == set(values)


def test_samples_are_held_against_the_labels_that_they_were_made_for() -> None:
    """Of 30 samples for the 20 held-out labels, from the first on: the first 15 are what they should be."""
    config = read(compose(["model=learned_prior_aae_supervised", "model.width=2", "evaluate.fidelity=digits"]))
    algorithm, loader = build_algorithm(config, DataFacts((1, 28, 28), 10)), Share(0, 1)
    wanted = np.tile(LABELS, 2)[:30]
    shown = torch.from_numpy(np.where(np.arange(30) < 15, wanted, wanted + 1))
    logits = 9 * F.one_hot(shown, 10).double()
    evaluation: Any = evaluation_of(algorithm, None, loader, start("cpu"), config.evaluate)
    sure = math.exp(9) / (math.exp(9) + 9)
    assert classified(evaluation, "learned", logits) == pytest.approx({"accuracy": 0.5, "confidence": sure})
    assert set(classified(evaluation, "data", logits)) == {"confidence"}
    algorithm.condition = None
    assert set(classified(evaluation, "learned", logits)) == {"confidence"}


def model(mode: str, code_dim: int) -> dict[str, Any]:
    target = "dtrain.models.learned_prior_aae.LearnedPriorAAE"
    return {"_target_": target, "mode": mode, "code_dim": code_dim, "width": 2}


@pytest.mark.parametrize(
    ("mode", "families", "pictures"),
    [
        ("plain", set(), {"tsne"}),
        ("supervised", {"accuracy"}, {"tsne", "grid"}),
        ("unsupervised", {"purity", "nmi"}, {"tsne", "grid"}),
    ],
)
def test_a_run_measures_and_draws_what_its_mode_has(
    mode: str, families: set[str], pictures: set[str], tmp_path: Path
) -> None:
    for split, count in (("train", 32), ("valid", 20), ("test", 20)):
        rng = np.random.default_rng(count)
        images, labels = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8), np.arange(count) % 10
        write_split(tmp_path / split, array_source(images, labels, {"what": "noise"}, None, split))
    torch.save({"weights": DigitClassifier().state_dict()}, tmp_path / "classifier.pt")
    run = tmp_path / "run"
    config = freeze(
        run, tmp_path, "data.image_shape=[1,28,28]", "trainer.max_steps=2", "evaluate.fidelity=digits",
        f"evaluate.digit_classifier={tmp_path / 'classifier.pt'}", "evaluate.fidelity_samples=20",
        f"run.root={tmp_path}", model=model(mode, 12),
    )  # fmt: skip
    assert execute(config) == 0
    (line,) = evaluations(run)
    members = {key for key in line if key.partition("/")[0] in ("accuracy", "purity", "nmi")}
    assert {key.partition("/")[0] for key in members} == families
    assert ("accuracy/digits/learned" in line) == ("accuracy" in families) and "accuracy/digits/data" not in line
    assert "confidence/digits/learned" in line
    drawn = {file.stem for file in (run / "images").glob("*.png")}
    assert drawn & {"tsne", "grid"} == pictures
