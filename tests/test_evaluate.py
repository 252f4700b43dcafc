"""Evaluation: what the numbers per level mean, on a hierarchy that can be computed by hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.build import build_algorithm
from dtrain.compose import compose, read
from dtrain.config import ConfigError
from dtrain.data.batch import Batch
from dtrain.evaluate.critic_gap import critic_gap
from dtrain.evaluate.heldout import held_out, use_of_the_deepest
from dtrain.evaluate.manipulation import directions, moved
from dtrain.evaluate.nearest import closest
from dtrain.evaluate.pictures import _principal
from dtrain.metrics import better, larger_is_better, order, table
from dtrain.models.base import Algorithm, DataFacts, Prior
from dtrain.noise import Noise
from dtrain.world import World, start
from tests.harness import evaluation_of
from tests.processes import launch
from tests.runs import execute, freeze

SETTINGS = read(compose([])).evaluate
ROWS = torch.rand(24, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()


class Halves(Algorithm):
    """Images of 2 x 2 in [-1, 1]. Level 1 keeps all four pixels; level 2 keeps two, and two that never change."""

    value_range = (-1.0, 1.0)
    levels = 2

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        z = x.flatten(1)
        return z if level == 1 else torch.cat([z[:, :2], torch.full_like(z[:, :2], 0.3)], dim=1)

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        return z.view(-1, 1, 2, 2)


class Share:
    """Batches of up to 5 rows per rank, unequal at the end."""

    def __init__(self, rank: int, size: int) -> None:
        self.rows = ROWS[rank::size] * 2 - 1

    def once(self) -> Iterator[Batch]:
        for part in self.rows.split(5):
            yield Batch(part, Noise.of(len(part)))


def numbers() -> dict[str, float]:
    world = start("cpu", timeout=60)
    loader: Any = Share(world.rank, world.size)
    return held_out(evaluation_of(Halves(), loader, loader, world, SETTINGS))


@pytest.mark.parametrize("world", [1, 2])
def test_the_use_of_every_level_is_measured_over_the_whole_set(world: int) -> None:
    constant = (1 + 0.3) / 2
    error = (ROWS.flatten(1)[:, 2:] - constant).square().sum() / ROWS.numel()
    variance = ROWS.var(0, correction=0).mean()
    expected = {
        "mse/level1": 0.0, "mse_symmetric/level1": 0.0, "explained/level1": 1.0, "inactive/level1": 0.0,
        "mse/level2": float(error), "mse_symmetric/level2": 4 * float(error),
        "explained/level2": float(1 - error / variance), "inactive/level2": 0.5,
    }  # fmt: skip
    for values in [numbers()] if world == 1 else launch(world, numbers):
        assert values == pytest.approx(expected)


class Posterior(Halves):
    """Two dimensions with Var(mean) = 99 E[variance] and as much, at any scale."""

    levels = 1

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        mean = self.scale * x.flatten(1)[:, :2]
        of_mean = (self.scale * (ROWS * 2 - 1).flatten(1)[:, :2]).var(0, correction=0)
        yield mean, (of_mean * torch.tensor([98.0, 100.0])).expand_as(mean)

    def reconstructions(self, x: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_dimension_is_inactive_where_its_variance_is_noise_at_any_scale(scale: float) -> None:
    loader: Any = Share(0, 1)
    values = held_out(evaluation_of(Posterior(scale), loader, loader, World(), SETTINGS))
    assert values["inactive/level1"] == 0.5


class Chain(Halves):
    """x = 2 z_2 + the decoder's noise, so that z_2 has 4 of the 5 parts of the variance."""

    def chain(self, deepest: Noise, noise: Noise) -> Tensor:
        return (2 * deepest.normal("z", 4) + noise.normal("decoder", 4)).double()


def deepest_use() -> dict[str, float]:
    world, nothing = start("cpu", timeout=60), cast(Any, None)
    return use_of_the_deepest(evaluation_of(Chain(), nothing, nothing, world, SETTINGS))


def test_the_use_of_the_deepest_level_is_its_share_of_the_variance_generated() -> None:
    alone = deepest_use()
    assert alone == {"generative_use/z2": pytest.approx(0.8, abs=0.03)}
    for values in launch(2, deepest_use):
        assert values == pytest.approx(alone)
    nothing: Any = None
    assert use_of_the_deepest(evaluation_of(Halves(), nothing, nothing, World(), SETTINGS)) == {}


def neighbours() -> tuple[Tensor, Tensor]:
    world = start("cpu", timeout=60)
    loader: Any = Share(world.rank, world.size)
    asked = torch.linspace(-1, 1, 12).double().view(3, 1, 2, 2)
    return closest(evaluation_of(Halves(), loader, loader, world, SETTINGS), asked)


def test_the_nearest_training_images_are_found_on_all_ranks() -> None:
    asked = torch.linspace(0, 1, 12).double().view(3, 1, 2, 2)
    between = (ROWS[:, None] - asked).square().flatten(2).mean(2).sqrt()
    for distances, images in [neighbours(), *launch(2, neighbours)]:
        torch.testing.assert_close(distances, between.amin(0))
        torch.testing.assert_close(images, ROWS[between.argmin(0)] * 2 - 1)


def test_metrics_are_printed_as_a_table_of_members_and_families() -> None:
    rows = table(
        {"objective": 3.0, "mse/level1": 0.01, "inactive/level1": 0.0, "mse/level2": 0.5, "isc/digits/normal": 9}
    )
    assert [row.split() for row in rows] == [
        ["mse", "inactive", "isc"], ["level1", "0.01", "0"], ["level2", "0.5"], ["digits/normal", "9"],
    ]  # fmt: skip
    assert table({"objective": 3.0}) == []


def test_every_metric_has_a_direction_and_unknown_ones_are_refused() -> None:
    assert better("fid/imagenet/normal", 1.0, 2.0) and not better("isc/imagenet/normal", 1.0, 2.0)
    assert better("isc/imagenet/normal", 2.0, None)
    for metric in ("objective", "isc/digits/normal"):
        assert not better(metric, float("nan"), None) and not better(metric, float("nan"), 1.0)
        assert better(metric, 1.0, float("nan"))
    values = [2.0, float("nan"), 3.0]
    assert sorted(values, key=lambda v: order("explained/level1", v))[:2] == [3.0, 2.0]
    assert sorted(values, key=lambda v: order("mse/level1", v))[:2] == [2.0, 3.0]
    for metric, said in (("isc_std/digits/normal", "no better and worse"), ("score", "is of no known family")):
        with pytest.raises(ConfigError, match=said):
            larger_is_better(metric)


def test_umap_draws_the_latents_where_it_is_installed(tmp_path: Path, shards: Path) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=2", "evaluate.projection=umap")
    assert execute(file) == 0
    assert {p.name for p in (tmp_path / "run" / "images").iterdir()} == {
        "samples.png", "nearest.png", "between_samples.png", "reconstructions.png", "interpolation.png", "paths.png",
        "latents.png",
    }  # fmt: skip


def test_umap_that_is_not_installed_is_refused_before_training(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "umap" else find(name, *a))
    with pytest.raises(ConfigError, match=r"dtrain\[umap\]"):
        execute(freeze(tmp_path / "run", shards, "evaluate.projection=umap"))
    assert not (tmp_path / "run").exists()


class Judged(Halves):
    """A critic whose logit is the first pixel."""

    def critic_logits(self, x: Tensor) -> Tensor | None:
        return x[:, 0, 0, 0]

    def reconstruct(self, x: Tensor, level: int = 1) -> Tensor:
        return x - 3


class Brighter(Share):
    """The training images: every pixel as held out, plus one."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.rows = self.rows + 1


def gaps(algorithm: type[Algorithm]) -> dict[str, float]:
    world = start("cpu", timeout=60)
    train: Any = Brighter(world.rank, world.size)
    heldout: Any = Share(world.rank, world.size)
    return critic_gap(evaluation_of(algorithm(), train, heldout, world, SETTINGS))


@pytest.mark.parametrize("world", [1, 2])
def test_the_critics_gap_is_between_training_and_held_out_images(world: int) -> None:
    for found in [gaps(Judged)] if world == 1 else launch(world, gaps, Judged):
        assert found == pytest.approx({"critic_gap/logit": 1.0, "critic_gap/relative": 0.25})
    assert gaps(Halves) == {}


class Labelled(Share):
    """The rows with a class each and two attributes: brightness of the first pixel, and nothing."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.split: Any = SimpleNamespace(class_names=["dark", "light"], attribute_names=["Bright", "Never"])

    def once(self) -> Iterator[Batch]:
        for batch in super().once():
            bright = (batch.x[:, 0, 0, 0] > 0).long()
            light = (batch.x.mean((1, 2, 3)) > 0).long()
            yield Batch(batch.x, batch.noise, light, torch.stack([bright, torch.zeros_like(bright)], dim=1))


def found_directions() -> dict[str, Tensor]:
    world = start("cpu", timeout=60)
    loader: Any = Labelled(world.rank, world.size)
    return directions(evaluation_of(Halves(), loader, loader, world, SETTINGS), ["Bright", "light", "Never"])


@pytest.mark.parametrize("world", [1, 2])
def test_a_direction_is_the_difference_of_the_means_with_and_without(world: int) -> None:
    z = (ROWS * 2 - 1).flatten(1)
    bright, light = z[:, 0] > 0, z.mean(1) > 0
    expected = {
        "Bright": z[bright].mean(0) - z[~bright].mean(0),
        "light": z[light].mean(0) - z[~light].mean(0),
        "Never": torch.zeros(4).double(),
    }
    for found in [found_directions()] if world == 1 else launch(world, found_directions):
        for name, direction in expected.items():
            torch.testing.assert_close(found[name], direction)
    images = moved(Halves(), z[:2], expected["Bright"], [0.0, 2.0])
    torch.testing.assert_close(images[0::2].flatten(1), z[:2])
    torch.testing.assert_close(images[1::2].flatten(1), z[:2] + 2 * expected["Bright"])


class Conditional(Halves):
    """The code of a sample is its condition."""

    condition = "labels"

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        assert condition is not None
        return {"given": lambda noise: condition[:, None].expand(-1, 4)}


def test_samples_are_conditioned_on_the_held_out_splits_own_labels(shards: Path) -> None:
    loader: Any = SimpleNamespace(split=SimpleNamespace(arrays={"labels": np.array([3, 1, 2])}))
    evaluation = evaluation_of(Conditional(), loader, loader, start("cpu"), SETTINGS)
    noise = Noise(0, torch.tensor([0, 2, 4, 6]))
    assert evaluation.priors(noise)["given"](noise)[:, 0].tolist() == [3, 2, 1, 3]
    config = read(compose([])).model_copy(update={"model": {"_target_": "tests.test_evaluate.Unbuilt"}})
    with pytest.raises(ConfigError, match="conditioned on labels, which the data does not have"):
        build_algorithm(config, DataFacts((1, 2, 2)))
    assert build_algorithm(config, DataFacts((1, 2, 2), classes=3))


class Unbuilt(Conditional):
    groups: ClassVar = {}

    def __init__(self, data: DataFacts) -> None:
        super().__init__()


def test_every_attribute_asked_for_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        images, labels = rng.integers(0, 256, (16, 24, 24, 1), dtype=np.uint8), rng.integers(0, 2, 16)
        facts = {"what": "noise", "class_names": ["even", "odd"]}
        write_split(tmp_path / "shards" / split, array_source(images, labels, facts, None, split))
    model = {
        "_target_": "dtrain.models.swae.SWAE",
        "code_dim": 3,
        "latent_dim": 3,
        "width": 4,
        "critic_width": 4,
        "hidden": 8,
        "priors": ["normal", "uniform"],
    }
    overrides = ("data.image_shape=[1,24,24]", "trainer.max_steps=2", "evaluate.manipulate=[odd]")
    assert execute(freeze(tmp_path / "run", tmp_path / "shards", *overrides, model=model)) == 0
    assert (tmp_path / "run" / "images" / "manipulation_odd.png").is_file()


def test_a_class_named_by_a_number_needs_no_quotes() -> None:
    assert read(compose(["evaluate.manipulate=[3]"])).evaluate.manipulate == ["3"]


@pytest.mark.parametrize("dims", [5, 60])
def test_principal_components_are_those_of_the_svd(dims: int) -> None:
    z = torch.randn(20, dims, generator=torch.Generator().manual_seed(0)).double()
    _, scale, directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    points = torch.from_numpy(_principal(z))
    torch.testing.assert_close(points.square().sum(0), scale[:2].square())
    torch.testing.assert_close(points.abs(), ((z - z.mean(0)) @ directions[:2].T).abs())
