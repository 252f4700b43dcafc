"""The baselines' terms against closed forms and loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import ConfigError
from dtrain.data.batch import Batch
from dtrain.losses.mmd import SCALES
from dtrain.models.ali import ALI
from dtrain.models.base import Algorithm, DataFacts
from dtrain.models.vampprior import VampPrior
from dtrain.models.wae import WAE
from dtrain.noise import Noise
from tests.harness import images, make_config

SHAPE = (1, 24, 24)
FACTS = DataFacts(SHAPE)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def made(model: str, *overrides: str) -> Algorithm:
    """In double precision and evaluation mode: batch norm leaves every row to itself."""
    return build_algorithm(make_config(model, *overrides), FACTS).double().eval()


def batch(rows: int = 8, start: int = 0) -> Batch:
    x = torch.from_numpy(2 * images(SHAPE)[:rows] - 1)
    return Batch(x, Noise(0, torch.arange(start, start + rows), torch.float64))


def softplus(logits: Tensor) -> float:
    return sum(math.log1p(math.exp(v)) for v in logits.flatten().tolist()) / logits.numel()


def drawn(algorithm: ALI, at: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """E(x), z and G(z) by their definitions."""
    mean, variance = algorithm.posterior(at.x)
    z = at.noise.normal("prior", 3)
    return mean + variance.sqrt() * at.noise.normal("code", 3), z, algorithm.decode(z)


def test_alis_losses_are_its_four_softplus_terms() -> None:
    algorithm, at = made("ali", "model.dropout=0"), batch()
    assert isinstance(algorithm, ALI)
    code, z, fake = drawn(algorithm, at)
    kept = torch.ones(8, 2, 1024, dtype=torch.float64)
    encoded, generated = algorithm.critic(at.x, code, kept), algorithm.critic(fake, z, kept)
    assert float(algorithm.critic_loss(at)["critic"]) == pytest.approx(softplus(-encoded) + softplus(generated))
    assert float(algorithm.autoencoder_loss(at)["fool"]) == pytest.approx(softplus(encoded) + softplus(-generated))
    assert set(algorithm.autoencoder_loss(at)) == {"fool"}


def test_alices_cycles_are_mean_absolute_errors() -> None:
    algorithm, at = made("alice", "model.cycle_weight=2", "model.code_cycle_weight=3"), batch()
    assert isinstance(algorithm, ALI)
    code, z, fake = drawn(algorithm, at)
    terms = algorithm.autoencoder_loss(at)
    pixels = (at.x - algorithm.decode(code)).flatten().tolist()
    assert float(terms["cycle"]) == pytest.approx(2 * sum(map(abs, pixels)) / len(pixels))
    mean, variance = algorithm.posterior(fake)
    codes = (z - mean - variance.sqrt() * at.noise.normal("again", 3)).flatten().tolist()
    assert float(terms["code_cycle"]) == pytest.approx(3 * sum(map(abs, codes)) / len(codes))


def test_the_joint_critic_drops_units_and_keeps_their_mean() -> None:
    algorithm = made("ali", "model.dropout=0.25")
    assert isinstance(algorithm, ALI)
    kept = algorithm.kept(batch().noise, "critic encoded")
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3]) and float(kept.mean()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(kept, algorithm.kept(batch().noise, "critic generated"))
    at = batch()
    code, _, _ = drawn(algorithm, at)
    whole = algorithm.critic(at.x, code, torch.ones_like(kept))
    assert not torch.equal(algorithm.critic(at.x, code, kept), whole)
    assert not torch.equal(algorithm.critic(at.x, code + 1, torch.ones_like(kept)), whole), "sees the code"
    assert not torch.equal(algorithm.critic(-at.x, code, torch.ones_like(kept)), whole), "sees the image"


def test_the_vampprior_is_the_encoders_mixture_over_pseudo_inputs() -> None:
    """log p(z) by a loop over components and dimensions."""
    algorithm, at = made("vampprior"), batch()
    assert isinstance(algorithm, VampPrior)
    means, variances = algorithm.posterior(2 * algorithm.pseudo_inputs.pixels.clamp(0, 1) - 1)
    mean, variance = algorithm.posterior(at.x)
    z = mean + variance.sqrt() * at.noise.normal("z", 3)

    def density(z: Tensor, mean: Tensor, variance: Tensor) -> float:
        return math.prod(
            math.exp(-((a - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            for a, m, v in zip(z.tolist(), mean.tolist(), variance.tolist(), strict=True)
        )

    rows = [
        math.log(density(z[i], mean[i], variance[i]))
        - math.log(sum(density(z[i], means[k], variances[k]) for k in range(6)) / 6)
        for i in range(8)
    ]
    assert float(algorithm.validate(at)["kl"]) == pytest.approx(sum(rows) / 8)


def test_the_vampprior_warms_its_kl_term_up_by_images_seen() -> None:
    algorithm = made("vampprior", "model.warmup_images=100")
    assert isinstance(algorithm, VampPrior)
    assert float(algorithm.objective(batch())["kl"]) == pytest.approx(
        sum(float(algorithm.terms(batch())[1][i]) * i / 100 for i in range(8)) / 8
    )
    late = batch(start=100)
    assert float(algorithm.objective(late)["kl"]) == pytest.approx(float(algorithm.validate(late)["kl"]))


def test_pseudo_inputs_pass_by_the_running_statistics_without_moving_them() -> None:
    algorithm = made("vampprior")
    assert isinstance(algorithm, VampPrior)
    expected, _ = algorithm.components()
    before = {k: v.clone() for k, v in algorithm.named_buffers()}
    algorithm.train()
    means, _ = algorithm.components()
    torch.testing.assert_close(means, expected)
    assert all(torch.equal(v, before[k]) for k, v in algorithm.named_buffers())
    assert algorithm.encoder.training and all(m.training for m in algorithm.encoder.modules())


def test_pseudo_inputs_have_a_gradient_at_the_start() -> None:
    algorithm, at = made("vampprior"), batch()
    assert isinstance(algorithm, VampPrior)
    with torch.enable_grad():
        algorithm.validate(at)["kl"].backward()
    pixels = algorithm.pseudo_inputs.pixels
    assert pixels.grad is not None and (pixels.grad != 0).double().mean() > 0.9
    assert float(pixels.mean()) == pytest.approx(0.05, abs=0.001)
    assert float(pixels.std()) == pytest.approx(0.01, rel=0.1)


def test_samples_of_the_vampprior_are_draws_around_every_pseudo_input() -> None:
    algorithm = made("vampprior", "model.pseudo_inputs=2")
    assert isinstance(algorithm, VampPrior)
    noise = Noise(0, torch.arange(4000), torch.float64)
    codes, (means, variances) = algorithm.sample_codes(noise), algorithm.components()
    assert float(codes.mean(0)[0]) == pytest.approx(float(means.mean(0)[0]), abs=0.1)
    second = (variances + means.square()).mean(0)
    torch.testing.assert_close(codes.square().mean(0), second, rtol=0.1, atol=0.05)


def test_the_bernoulli_likelihood_is_the_cross_entropy_of_pixels_in_0_1() -> None:
    algorithm, at = made("vae"), batch()
    z = at.noise.normal("z", 3)
    p, x = ((algorithm.decode(z) + 1) / 2).flatten(1), ((at.x + 1) / 2).flatten(1)
    expected = -(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean()
    assert float(algorithm.error(at.x, z)) == pytest.approx(float(expected))


def test_the_bernoulli_likelihood_is_finite_where_the_image_saturates() -> None:
    algorithm, at = made("vae"), batch()
    assert math.isfinite(float(algorithm.error(at.x, 1e6 * torch.ones(8, 3, dtype=torch.float64))))


def test_wae_gan_fools_its_critic_of_codes() -> None:
    algorithm, at = made("wae_gan", "model.lambda_match=7"), batch()
    assert isinstance(algorithm, WAE)
    z, prior = algorithm.encode(at.x), at.noise.normal("prior", 3)
    assert float(algorithm.critic_loss(at)["critic"]) == pytest.approx(
        softplus(-algorithm.critic(prior)) + softplus(algorithm.critic(z))
    )
    terms = algorithm.objective(at)
    assert float(terms["fool"]) == pytest.approx(7 * softplus(-algorithm.critic(z)))
    assert float(terms["x"]) == pytest.approx(0.05 * float((algorithm.decode(z) - at.x).square().sum()) / 8)


def test_the_density_trick_adds_the_log_density_of_the_prior() -> None:
    algorithm = made("wae_gan", "model.density_trick=true", "model.prior_scale=2")
    z = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    expected = float(algorithm.critic(z)) - (1 + 4 + 0.25) / 8 - 1.5 * math.log(2 * math.pi * 4)
    assert float(algorithm.logits(z)) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="density_trick"):
        made("wae_gan", "model.density_trick=true", "model.prior=uniform")


def test_a_uniform_prior_has_codes_behind_a_tanh_and_half_the_kernels_base() -> None:
    algorithm, at = made("wae_mmd", "model.prior=uniform", "model.lambda_match=1"), batch()
    assert isinstance(algorithm, WAE)
    z, prior = algorithm.encode(at.x), 2 * at.noise.uniform("prior", 3) - 1
    torch.testing.assert_close(z, algorithm.encoder(at.x).tanh())

    def kernel(a: Tensor, b: Tensor) -> float:
        squared = float((a - b).square().sum())
        return sum(3 * s / (3 * s + squared) for s in SCALES)

    pairs = [(i, j) for i in range(8) for j in range(8)]
    within = sum(kernel(c[i], c[j]) for c in (z, prior) for i, j in pairs if i != j) / 56
    cross = sum(kernel(z[i], prior[j]) for i, j in pairs) / 64
    assert float(algorithm.objective(at)["mmd"]) == pytest.approx(within - 2 * cross)


def test_an_autoencoder_has_the_squared_error_alone() -> None:
    algorithm, at = made("ae"), batch()
    assert {k: float(v) for k, v in algorithm.validate(at).items()} == pytest.approx(
        {"x": float((algorithm.reconstruct(at.x) - at.x).square().sum()) / 8}
    )
    assert not algorithm.priors()


TABLES = {
    "mnist_table": (
        {"swae": ("ae", "wae_mmd", "wae_gan", "vae", "vampprior", "ali", "alice", "aeot"), "learned_prior": ("aae",)}
    ),
    "mnist64_table": {"aeot": ("vae", "wae_gan")},
}


@pytest.mark.parametrize(("table", "system"), [(table, system) for table in TABLES for system in TABLES[table]])
def test_the_rows_of_a_table_have_the_networks_of_the_system(table: str, system: str) -> None:
    """But for the last layer of a Gaussian encoder, which has twice the outputs."""

    def sizes(model: str, network: str) -> dict[str, tuple[int, ...]]:
        config = configs.read(configs.compose([f"experiment={table}", f"model={table}/{model}"]))
        with torch.device("meta"):
            algorithm = build_algorithm(config, DataFacts(config.data.image_shape, 10, images=100))
        return {k: tuple(v.shape) for k, v in algorithm.get_submodule(network).state_dict().items()}

    for model in TABLES[table][system]:
        assert sizes(model, "decoder") == sizes(system, "decoder"), model
        ours, its = sizes(model, "encoder"), sizes(system, "encoder")
        wider = {k for k in its if ours.pop(k) != its[k]}
        assert not ours and len(wider) == 2 * (model in ("vae", "vampprior", "ali", "alice")), (model, wider)
