"""Evaluation: what the numbers per level mean, on a hierarchy that can be computed by hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.config import ConfigError
from dtrain.data.batch import Batch
from dtrain.distributed import start
from dtrain.evaluate.heldout import held_out
from dtrain.log import by_level
from dtrain.models.base import Algorithm
from dtrain.noise import Noise
from tests.processes import launch
from tests.runs import execute, freeze

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
    return held_out(Halves(), loader, world, lambda: None)


@pytest.mark.parametrize("world", [1, 2])
def test_the_use_of_every_level_is_measured_over_the_whole_set(world: int) -> None:
    constant = (1 + 0.3) / 2
    error = (ROWS.flatten(1)[:, 2:] - constant).square().sum() / ROWS.numel()
    variance = ROWS.var(0, correction=0).mean()
    expected = {
        "mse/level1": 0.0, "explained/level1": 1.0, "inactive/level1": 0.0,
        "mse/level2": float(error), "explained/level2": float(1 - error / variance), "inactive/level2": 0.5,
    }  # fmt: skip
    for values in [numbers()] if world == 1 else launch(world, numbers):
        assert values == pytest.approx(expected)


def test_levels_are_printed_as_a_table() -> None:
    rows = by_level({"objective": 3.0, "mse/level1": 0.01, "inactive/level1": 0.0, "mse/level2": 0.5})
    assert [row.split() for row in rows[:2]] == [["level", "mse", "inactive"], ["1", "0.01", "0"]]
    assert by_level({"objective": 3.0}) == []


def test_umap_draws_the_latents_where_it_is_installed(tmp_path: Path, shards: Path) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=2", "evaluate.projection=umap")
    assert execute(file) == 0
    assert {p.name for p in (tmp_path / "run" / "images").iterdir()} == {
        "samples.png", "reconstructions.png", "interpolation.png", "paths.png", "latents.png",
    }  # fmt: skip


def test_umap_that_is_not_installed_is_refused_before_training(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "umap" else find(name, *a))
    with pytest.raises(ConfigError, match=r"dtrain\[umap\]"):
        execute(freeze(tmp_path / "run", shards, "evaluate.projection=umap"))
    assert not (tmp_path / "run").exists()
