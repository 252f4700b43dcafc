"""Counter-based randomness: a function of (seed, position, site), with the right distributions."""

from __future__ import annotations

import torch

from dtrain.noise import Noise


def test_numbers_depend_on_seed_position_and_site_only() -> None:
    noise = Noise.of(100, seed=5)
    z = noise.normal("z", 3)
    assert torch.equal(z, Noise.of(100, seed=5).normal("z", 3))
    assert torch.equal(z[60:], Noise(5, torch.arange(60, 100)).normal("z", 3))
    assert torch.equal(z[10:20], torch.cat([part.normal("z", 3) for part in noise.chunk(10)])[10:20])
    for other in (
        noise.normal("y", 3),
        Noise.of(100, seed=6).normal("z", 3),
        Noise.of(100, 5, start=1).normal("z", 3),
    ):
        assert not torch.isclose(z, other).any()


def test_positions_beyond_32_bits_differ() -> None:
    low, high = Noise(0, torch.tensor([7])), Noise(0, torch.tensor([7 + 2**32]))
    assert not torch.isclose(low.normal("z", 8), high.normal("z", 8)).any()


def test_normal_moments_and_independence() -> None:
    z = Noise.of(20_000).normal("z", 5).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    columns = torch.corrcoef(z.T) - torch.eye(5)
    neighbours = (z[1:] * z[:-1]).mean(0)
    assert columns.abs().max() < 5 / 20_000**0.5
    assert neighbours.abs().max() < 5 / 20_000**0.5


def test_uniform_is_uniform_in_every_bin() -> None:
    u = Noise.of(50_000).uniform("u", 4)
    assert float(u.min()) > 0 and float(u.max()) <= 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    expected = u.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 5 * (2 * 63) ** 0.5


def test_sites_drawn_ahead_in_one_pass_are_the_same_numbers() -> None:
    noise = Noise.of(40, seed=3, start=2**33 + 5)
    shapes: dict[str, tuple[int, ...]] = {
        "z1": (32,),
        "odd": (7,),
        "image": (2, 3, 5),
        "one": (1,),
        "large": (40, 40),
    }
    ahead = noise.ahead(shapes)
    assert ahead._drawn.keys() == shapes.keys() - {"large"}
    for site, shape in shapes.items():
        assert torch.equal(ahead.normal(site, *shape), noise.normal(site, *shape)), site
    assert torch.equal(ahead.normal("z1", 4), noise.normal("z1", 4))  # another shape than announced
    for part, whole in (
        (ahead[3:9], noise[3:9]),
        (ahead.inner(1), noise.inner(1)),
        (ahead.chunk(4)[2], noise[20:30]),
    ):
        assert torch.equal(part.normal("z1", 32), whole.normal("z1", 32))
