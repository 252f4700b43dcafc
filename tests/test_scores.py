"""Scores of features against closed forms and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dtrain.evaluate.fidelity import Features, frechet, laplacian, measure, sliced


def test_precision_and_recall_are_shares_within_the_third_neighbour() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(30, 3, generator=generator), torch.randn(20, 3, generator=generator) + 0.7

    def inside(points: Tensor, of: Tensor) -> float:
        radii = [sorted(float((a - b).norm()) for b in of)[3] for a in of]
        return sum(any(float((p - a).norm()) <= r for a, r in zip(of, radii, strict=True)) for p in points) / len(
            points
        )

    fakes, reals = (Features(rows, rows[:, :0], rows[:, :2], torch.ones(len(rows))) for rows in (fake, real))
    found = measure(fakes, reals)
    assert found["distance_images"] == 20 and "fid_blurred" not in found
    assert found["precision"] == pytest.approx(inside(fake, real[:20]))
    assert found["recall"] == pytest.approx(inside(real[:20], fake))


def test_distances_of_gaussians_that_differ_in_their_mean() -> None:
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    moved = rows + torch.arange(16) / 8
    expected = float((torch.arange(16) / 8).square().sum())
    assert frechet(moved, rows) == pytest.approx(expected, rel=1e-4)
    assert sliced(moved, rows) == pytest.approx(expected, rel=0.1)
    assert sliced(rows, rows) == 0


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    images = torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, found in zip(images.double() / 255, laplacian(images), strict=True):
        grey = image.mean(0)
        values = [
            grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1] - 4 * grey[i, j]
            for i in range(1, 5) for j in range(1, 4)
        ]  # fmt: skip
        assert float(found) == pytest.approx(float(torch.stack(values).var()), rel=1e-5)
