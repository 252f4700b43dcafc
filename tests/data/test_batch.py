"""From bytes to floats: scaling and mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dtrain.data.batch import Batch, flipped, to_float
from dtrain.noise import Noise


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 2.0)])
def test_bytes_map_linearly_onto_the_value_range(value_range: tuple[float, float]) -> None:
    low, high = value_range
    images = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1)
    expected = low + images.permute(0, 3, 1, 2).double() / 255 * (high - low)
    assert torch.allclose(to_float(images, value_range).double(), expected, atol=1e-6)


def test_mirroring_flips_only_the_chosen_images_left_to_right() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2), dtype=np.uint8))
    mirrored = torch.tensor([True, False, True, False, False])
    plain, x = to_float(images, (0.0, 1.0)), to_float(images, (0.0, 1.0), mirrored)
    for i in range(5):
        expected = plain[i, :, :, [2, 1, 0]] if mirrored[i] else plain[i]
        assert torch.equal(x[i], expected)


def test_the_coin_is_fair_and_depends_only_on_the_position() -> None:
    coins = flipped(Noise.of(20_000, seed=3))
    assert abs(coins.float().mean().item() - 0.5) < 4 * 0.5 / 20_000**0.5
    assert torch.equal(flipped(Noise(3, torch.tensor([17, 4, 9_999]))), coins[[17, 4, 9_999]])
    assert not torch.equal(flipped(Noise.of(20_000, seed=4)), coins)


def test_chunks_carry_every_field() -> None:
    batch = Batch(torch.randn(6, 1, 2, 2), Noise.of(6), torch.arange(6), None, torch.randn(6, 3))
    parts = batch.chunk(3)
    assert [len(p) for p in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([p.labels for p in parts if p.labels is not None]), torch.arange(6))
    assert torch.equal(parts[1].noise.position, torch.tensor([2, 3]))
    assert parts[2].attributes is None and parts[2].embeddings is not None
