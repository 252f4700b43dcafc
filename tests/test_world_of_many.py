"""Rank 0 of 64 sends and holds what the formulas say, without the other 63 (benchmarks/world.py)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.world import WAYS, check_rows, join, measure
from dtrain.data.order import Indices
from tests.processes import launch

WORLD = 64
CODE = 2
LEVELS = "model.levels=[{latent:3,hidden:20},{latent:2,hidden:12}]"
# Output and input units of every product: two levels of encoder and decoder, each with two hidden layers.
LAYERS = [
    [(20, 784), (20, 20), (6, 20)], [(12, 3), (12, 12), (4, 12)],
    [(20, 3), (20, 20), (784, 20)], [(12, 2), (12, 12), (6, 12)],
]  # fmt: skip


def shapes() -> list[list[tuple[int, ...]]]:
    """Of the parameters of each network: weights, and scales and shifts of batch norms, or biases."""
    return [
        [shape for i, (out, inputs) in enumerate(net) for shape in [(out, inputs)] + [(out,)] * (2 if i < 2 else 1)]
        for net in LAYERS
    ]


def of_one(ranks: int) -> float:
    """MB that one of so many holds, the first dimension of every parameter split, the last parts padded."""
    return sum(4 * math.ceil(s[0] / ranks) * math.prod(s[1:]) for net in shapes() for s in net) / 1e6


def lines() -> dict[str, dict[str, Any]]:
    """By way, of tensors with numbers; fake: fsdp's of those without."""
    world = join(WORLD)
    real = {way: measure(world, nullcontext(), "stackedwae", way, 1, LEVELS) for way in WAYS}
    return real | {
        "fake": measure(world, FakeTensorMode(allow_non_fake_inputs=True), "stackedwae", "fsdp", 1, LEVELS)
    }


def test_a_step_of_many_ranks_sends_what_the_formulas_say() -> None:
    (seen,) = launch(1, lines, timeout=300)
    assert seen["fake"] == seen["fsdp"]
    sends = {
        way: {(s["for"], s["collective"]): (s["calls"], s["ranks"], s["sent_mb"]) for s in line["sends"]}
        for way, line in seen.items()
    }
    others, nets, mb = (WORLD - 1) / WORLD, len(LAYERS), pytest.approx
    units = sum(out for net in LAYERS for out, _ in net[:2])
    for way, found in sends.items():
        assert found["batch_norm", "all_gather"] == (8, 64, mb(others * WORLD * 2 * units * 4 / 1e6, abs=2e-6)), way
        assert found["batch_norm", "all_reduce"] == (8, 64, mb(2 * others * 2 * units * 4 / 1e6, abs=2e-6)), way
        codes = others * WORLD * CODE * 4 / 1e6
        assert found["codes", "all_gather"] == (2, 64, mb(2 * codes, abs=2e-6)), way
        assert found["codes", "all_reduce"] == (1, 64, mb(2 * codes, abs=2e-6)), way
        assert found["vote", "all_reduce"] == (1, 64, mb(2 * others * 16 / 1e6, abs=2e-6)), way
        numbers = 3 + 2  # terms, and norms of the groups
        assert found["record", "all_reduce"] == (1, 64, mb(2 * others * numbers * 8 / 1e6, abs=2e-6)), way
    ddp, fsdp, hsdp = sends["ddp"], sends["fsdp"], sends["hsdp"]
    assert ddp["gradients", "all_reduce"] == (nets, 64, mb(2 * others * of_one(1), abs=2e-6))
    assert fsdp["shards", "all_gather"] == (2 * nets, 64, mb(2 * 63 * of_one(64), abs=2e-6))
    assert fsdp["shards", "reduce_scatter"] == (nets, 64, mb(63 * of_one(64), abs=2e-6))
    assert hsdp["shards", "all_gather"] == (2 * nets, 8, mb(2 * 7 * of_one(8), abs=2e-6))
    assert hsdp["shards", "all_reduce"] == (nets, 8, mb(2 * 7 / 8 * of_one(8), abs=2e-6))
    assert hsdp["shards", "all_gather"][2] < fsdp["shards", "all_gather"][2]
    for way, ranks in (("ddp", 1), ("fsdp", 64), ("hsdp", 8)):
        assert seen[way]["gradients_mb"] == seen[way]["parameters_mb"]
        assert 2 * seen[way]["parameters_mb"] < seen[way]["adam_mb"] < 2 * seen[way]["parameters_mb"] + 0.001
        assert seen[way]["parameters_mb"] <= of_one(ranks) * 1.000001, way
    assert seen["ddp"]["parameters_mb"] == mb(of_one(1))


def test_the_rows_of_a_rank_of_4096_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows(4096, [0, 1, 2047, 4095])
    monkeypatch.setattr("benchmarks.world.positions", blocks)
    with pytest.raises(RuntimeError, match="rank 1 of 4096"):
        check_rows(4096, [1])


def blocks(start: int, batch_size: int, rank: int = 0, world: int = 1) -> Indices:
    """Another way to share a batch: each rank has neighbours."""
    return start + np.arange(batch_size).reshape(world, -1)[rank]
