"""evaluate.sampler=gmm: the mixture fits and draws what it should, once for the weights, on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.build import build_algorithm
from dtrain.config import ConfigError
from dtrain.data.resident import ResidentLoader
from dtrain.data.shards import open_split
from dtrain.data.stream import Spec
from dtrain.evaluate import fidelity, mixture
from dtrain.evaluate.evaluator import Evaluator
from dtrain.evaluate.extractors import DigitClassifier
from dtrain.evaluate.mixture import GaussianMixture, fit, fitted
from dtrain.evaluate.preflight import check_model
from dtrain.models.base import Algorithm, DataFacts, Prior
from dtrain.noise import Noise
from dtrain.world import start
from tests.adversary import Adversary
from tests.harness import make_config, site_of
from tests.processes import launch
from tests.runs import evaluations, execute, freeze, write_shards

DIGIT = (1, 28, 28)


class Autoencoder(Adversary):
    """Without a generative model of its own."""

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {}


class Raw(Algorithm):
    """The code of an image is the image over a divisor."""

    divisor = 1.0

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        return x / self.divisor


class Broken(Raw):
    divisor = 0.0


def covariance(codes: Tensor) -> Tensor:
    return torch.cov(codes.double().T)


def test_a_mixture_draws_its_components_in_their_shares_places_and_shapes() -> None:
    factors = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.5, 0.0], [-0.3, 0.1]]])
    given = GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[10.0, 0.0], [-10.0, 5.0]]), factors, torch.Size([2])
    )
    codes = given.draw(Noise.of(40_000))
    of = (codes[:, 0] < 0).long()
    assert float(of.double().mean()) == pytest.approx(0.7, abs=0.01)
    for k in range(2):
        torch.testing.assert_close(codes[of == k].mean(0), given.means[k], atol=0.03, rtol=0)
        expected = (factors[k] @ factors[k].T).double()
        torch.testing.assert_close(covariance(codes[of == k]), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_fit_finds_clusters_at_any_scale_beside_a_constant_dimension(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.0]])
    sets = [torch.randn(n, 3, generator=generator) @ shape.T + mean for n, mean in ((3000, 20.0), (7000, -20.0))]
    codes = fit(scale * torch.cat(sets).view(-1, 1, 3), seed=-1).draw(Noise.of(20_000)) / scale
    assert codes.shape == (20_000, 1, 3)
    near = codes[:, 0, 0] > 0
    assert float(near.double().mean()) == pytest.approx(0.3, abs=0.02)
    for rows, source in zip((near, ~near), sets, strict=True):
        torch.testing.assert_close(codes[rows, 0].mean(0), source.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(covariance(codes[rows, 0]), covariance(source), atol=0.1, rtol=0)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_codes_that_are_all_the_same_are_drawn_as_they_are() -> None:
    drawn = fit(torch.full((20, 3), 7.0), seed=0).draw(Noise.of(50))
    torch.testing.assert_close(drawn, torch.full((50, 3), 7.0), atol=0.05, rtol=0)


def test_a_draw_is_a_function_of_its_position() -> None:
    found = fit(torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)), seed=0)
    noise = Noise.of(64, seed=3)
    drawn = found.draw(noise)
    assert drawn.shape == (64, 2, 3)
    for rank in range(2):
        torch.testing.assert_close(found.draw(noise[rank::2]), drawn[rank::2])
    assert not torch.allclose(found.draw(Noise.of(64, seed=4)), drawn)


def fitted_here(shards: Path) -> GaussianMixture:
    world = start("cpu", timeout=60)
    train = ResidentLoader(open_split(shards / "train"), Spec(10, (0.0, 1.0), rank=world.rank, world=world.size))
    site = site_of(world, train=train)
    with pytest.raises(ConfigError, match=r"evaluate.sampler=gmm cannot be fitted .*NaN.*; set it to prior"):
        fitted(Broken(), site, seed=0)
    return fitted(Raw(), site, seed=0)


def test_every_rank_has_the_fit_to_all_training_images(shards: Path) -> None:
    images = torch.from_numpy(np.array(open_split(shards / "train").images)).permute(0, 3, 1, 2) / 255
    direct = fit(images, seed=0)
    for found in (fitted_here(shards), *launch(2, fitted_here, shards)):
        for name in ("weights", "means", "factors"):
            torch.testing.assert_close(getattr(found, name), getattr(direct, name), msg=name)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 28 x 28, with an untrained classifier beside them."""
    folder = tmp_path_factory.mktemp("digits")
    write_shards(folder, shape=DIGIT)
    torch.manual_seed(0)
    torch.save({"weights": DigitClassifier().state_dict(), "accuracy": 0.1}, folder / "classifier.pt")
    return folder


def frozen(run: Path, digits: Path, *overrides: str) -> Path:
    return freeze(
        run, digits, f"data.image_shape={list(DIGIT)}", f"run.root={run.parent}", "trainer.max_steps=4",
        "trainer.evaluate_every=2", "evaluate.fidelity=digits", "evaluate.fidelity_samples=40",
        f"evaluate.digit_classifier={digits / 'classifier.pt'}", *overrides,
        model={"_target_": "tests.test_mixture.Autoencoder"},
    )  # fmt: skip


def numbers(run: Path) -> list[dict[str, float]]:
    """The metrics of all evaluations, those of valid first."""
    lines = evaluations(run) + evaluations(run, "test")
    return [{k: v for k, v in line.items() if "/" in k or k == "objective"} for line in lines]


def watched(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Arguments and result of every call."""
    function, seen = getattr(owner, name), list[tuple[tuple[Any, ...], Any]]()

    def watching(*arguments: Any) -> Any:
        seen.append((arguments, function(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(owner, name, watching)
    return seen


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Any]:
    """A run with evaluate.sampler=gmm: its folder, and what was called."""
    run = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fits, drawn = watched(patch, mixture, "fit"), watched(patch, fidelity, "_samples")
        promised = watched(patch, Evaluator, "rehearse")
        assert execute(frozen(run, digits, "evaluate.sampler=gmm")) == 0
    return {"run": run, "fits": fits, "drawn": drawn, "promised": promised}


def test_the_mixture_is_fitted_once_for_the_weights_at_hand(alone: dict[str, Any]) -> None:
    first, last = (codes for (codes, _), _ in alone["fits"])  # at step 2, and once at the end
    assert first.shape == last.shape == (96, 4) and not torch.equal(first, last)
    assert len(alone["drawn"]) == 2, "samples of an unconditional model are scored once for both splits"
    assert (alone["run"] / "images" / "samples.png").is_file()


def test_the_metrics_of_the_mixture_are_promised_before_training(alone: dict[str, Any]) -> None:
    ((_, promised),) = alone["promised"]
    assert {m.rpartition("/")[2] for m in promised if "/digits/" in m} == {"data", "gmm"}
    for values in numbers(alone["run"]):
        assert values.keys() == promised
        assert all(map(math.isfinite, values.values()))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_measure_what_one_does(strategy: str, tmp_path: Path, digits: Path, alone: dict[str, Any]) -> None:
    run = tmp_path / "run"
    assert launch(2, execute, frozen(run, digits, "evaluate.sampler=gmm", f"trainer.strategy={strategy}")) == [0, 0]
    found, expected = numbers(run), numbers(alone["run"])
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_an_autoencoder_without_prior_is_evaluated_without_samples(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, promised = watched(monkeypatch, mixture, "fit"), watched(monkeypatch, Evaluator, "rehearse")
    run = tmp_path / "run"
    assert execute(frozen(run, digits)) == 0
    assert not fits
    for values in numbers(run):
        assert values.keys() == promised[0][1]
        assert {m.rpartition("/")[2] for m in values if "/digits/" in m} == {"data"}
    drawn = {p.name for p in (run / "images").iterdir()}
    assert {"nearest.png", "paths.png"} <= drawn and not {"samples.png", "between_samples.png"} & drawn
    with pytest.raises(ValueError, match="Autoencoder has no generative model of its own"):
        Autoencoder(DataFacts(DIGIT)).sample(Noise.of(1))


def test_a_mixture_that_there_cannot_be_is_refused_before_training(tmp_path: Path, shards: Path) -> None:
    config = make_config("eight_gaussians", "evaluate.sampler=gmm")
    points = build_algorithm(config, DataFacts((1, 6, 6), images=96))
    with pytest.raises(ConfigError, match="EightGaussians encodes no images; set it to prior"):
        check_model(config.evaluate, points, open_split(shards / "train"))
    check_model(make_config("eight_gaussians").evaluate, points, open_split(shards / "train"))
    for split, count in (("train", 9), ("valid", 20), ("test", 20)):
        images = np.zeros((count, 6, 6, 1), dtype=np.uint8)
        source = array_source(images, np.zeros(count, np.int64), {"what": "0"}, None, split)
        write_split(tmp_path / "few" / split, source)
    with pytest.raises(ConfigError, match=r"fits 10 components, and .*train has 9 images; set it to prior, or take"):
        execute(freeze(tmp_path / "run", tmp_path / "few", "evaluate.sampler=gmm"))
    assert not (tmp_path / "run").exists()
