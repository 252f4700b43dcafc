"""Every loss against a slow loop or a closed form."""

from __future__ import annotations

import math

import pytest
import torch

from dtrain import precision
from dtrain.losses.gaussian import (
    draw,
    expected_squared_cost,
    kl_to_standard_normal,
    log_density,
    log_variance_penalty,
    mixture_log_density,
    squared_cost,
)  # fmt: skip
from dtrain.losses.mmd import SCALES, imq_mmd
from dtrain.models.stackedwae import level_weights, variance_weights
from dtrain.models.vae import GaussianLikelihood
from dtrain.noise import Noise


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [1.0, 0.7])
def test_mmd_equals_the_double_loop_over_pairs(sigma: float) -> None:
    n, d = 7, 3
    codes, prior = 2 * rows(n, d, 0), sigma * rows(n, d, 1)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        squared = float((a - b).square().sum())
        bases = [2 * d * sigma**2 * s for s in SCALES]
        return sum(c / (c + squared) for c in bases)

    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(kernel(z[i], z[j]) for z in (codes, prior) for i, j in pairs if i != j) / (n * n - n)
    cross = sum(kernel(codes[i], prior[j]) for i, j in pairs) / n**2
    assert float(imq_mmd(codes, prior, sigma)) == pytest.approx(within - 2 * cross, rel=1e-12)


def test_mmd_is_exact_where_products_are_in_tf32() -> None:
    """On a GPU their 10 bits would cancel in the distances: the products are taken in float64 then."""
    codes, prior = rows(8, 2, 0).float() + 1e3, rows(8, 2, 1).float() + 1e3
    precision.use("tf32")
    try:
        found = imq_mmd(codes, prior)
    finally:
        precision.use("fp32")
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(imq_mmd(codes.double(), prior.double())), rel=1e-6)


def test_mmd_of_far_apart_clouds_is_the_kernel_of_the_within_pairs() -> None:
    near = torch.zeros(4, 2)
    assert float(imq_mmd(near, near + 1e9)) == pytest.approx(2 * len(SCALES), rel=1e-6)
    assert float(imq_mmd(near, near)) == pytest.approx(0, abs=1e-5)


def test_mmd_is_unbiased_where_the_distributions_agree() -> None:
    values = [float(imq_mmd(rows(64, 2, s), rows(64, 2, s + 1000))) for s in range(200)]
    mean = sum(values) / len(values)
    spread = torch.tensor(values).std() / math.sqrt(len(values))
    # The within terms are unbiased, the plain cross term too: the mean is zero up to its own error.
    assert abs(mean) < 4 * spread


def test_mmd_has_the_gradient_of_its_differences() -> None:
    codes = rows(5, 2, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: imq_mmd(z, rows(5, 2, 1)), (codes,))


def test_mmd_stays_in_float32_under_autocast() -> None:
    codes, prior = rows(16, 4, 0).float(), rows(16, 4, 1).float()
    exact = imq_mmd(codes, prior)
    with torch.autocast("cpu", torch.bfloat16):
        assert imq_mmd(codes, prior) == exact


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 3)])
def test_mmd_refuses_unequal_or_single_rows(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="two equal batches"):
        imq_mmd(rows(n, 2, 0), rows(m, 2, 1))


def test_squared_cost_sums_over_dimensions_and_averages_over_the_batch() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(squared_cost(x, y)) == (4 * 1 + 4 * 4) / 2


def test_expected_cost_is_the_mean_over_samples_of_the_gaussian() -> None:
    z, mean, variance = rows(3, 4, 0), rows(3, 4, 1), rows(3, 4, 2).square() + 0.1
    draws = mean + variance.sqrt() * torch.randn(
        200_000, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    sampled = (draws - z).square().sum(2).mean()
    assert float(expected_squared_cost(z, mean, variance)) == pytest.approx(float(sampled), rel=1e-2)
    assert float(expected_squared_cost(z, mean, 0 * variance)) == pytest.approx(float(squared_cost(z, mean)))


def test_log_variance_penalty() -> None:
    variance = torch.tensor([[math.e, 1 / math.e], [1.0, math.e**2]])
    assert float(log_variance_penalty(variance)) == pytest.approx((2 + 2) / 2)


def test_level_weights_are_the_authors_schedules() -> None:
    dims = [32, 16, 8, 4, 2]
    assert level_weights("mnist", 0.1, dims) == pytest.approx([0.1 / 32, 0.01 / 16, 0.001 / 8, 0.0001 / 4])
    assert level_weights("svhn", 0.5, dims) == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert level_weights("celeba", 0.5, dims) == pytest.approx([0.5 ** (1 + k / 3) for k in range(4)])


def test_variance_weights_decay_exponentially() -> None:
    assert variance_weights(2.5, 5 / 6, 6) == pytest.approx([2.5 * math.exp(-5 * i / 6) for i in range(6)])


def test_the_divergence_from_the_standard_normal_is_torchs() -> None:
    mean, variance = rows(5, 3, 0), rows(5, 3, 1).square() + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, variance.sqrt()), normal(0.0, 1.0)).sum(1).mean()
    assert float(kl_to_standard_normal(mean, variance)) == pytest.approx(float(expected), rel=1e-12)


def test_the_likelihood_with_one_variance_is_torchs() -> None:
    x, mean = rows(4, 6, 0), rows(4, 6, 1)
    expected = -torch.distributions.Normal(mean, math.sqrt(0.3)).log_prob(x).sum(1).mean()
    assert float(GaussianLikelihood(0.3).double()(x, mean)) == pytest.approx(float(expected), rel=1e-6)


def test_samples_have_their_mean_and_variance() -> None:
    mean, variance = torch.tensor([[1.0, -2.0]]).expand(40_000, 2), torch.tensor([[4.0, 0.25]]).expand(40_000, 2)
    z = draw(mean, variance, Noise.of(40_000), "z")
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), variance[0], rtol=0.05, atol=0)


def test_log_density_is_torchs() -> None:
    z, mean, variance = rows(5, 3, 0), rows(5, 3, 1), rows(5, 3, 2).exp()
    expected = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z).sum(1)
    torch.testing.assert_close(log_density(z, mean, variance), expected)


def test_mixture_density_is_the_mean_of_its_components_and_stays_finite_far_away() -> None:
    z, means, variances = rows(5, 3, 0), rows(4, 3, 1), rows(4, 3, 2).exp()
    components = [log_density(z, means[k], variances[k]).exp() for k in range(4)]
    torch.testing.assert_close(mixture_log_density(z, means, variances), (sum(components) / 4).log())
    assert mixture_log_density(1e3 * torch.ones(1, 3), means, variances).isfinite().all()
