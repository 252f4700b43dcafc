"""AAE with a learned prior: its updates, the two weights of L_rec, the modes and switches, what is measured of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import ConfigError
from dtrain.data.batch import Batch
from dtrain.losses.adversarial import fooling_loss
from dtrain.losses.reconstruction import scaled_gradient, squared_error
from dtrain.models.base import DataFacts
from dtrain.models.learned_prior_aae import GROUPS, LearnedPriorAAE
from dtrain.nets.dcgan import ImageCritic
from dtrain.nets.residual import ResidualDecoder, ResidualEncoder
from dtrain.noise import Noise
from dtrain.world import World
from tests.harness import Session, Watched, difference, make_config, train
from tests.processes import launch

MODES = {
    "plain": "learned_prior_aae",
    "supervised": "learned_prior_aae_supervised",
    "unsupervised": "learned_prior_aae_unsupervised",
    "text": "learned_prior_aae_text",
}


def session(model: str, *overrides: str) -> Session:
    return Session(make_config(model, *overrides), World())


def aae(of: Session) -> LearnedPriorAAE:
    assert isinstance(of.algorithm, LearnedPriorAAE)
    return of.algorithm


def updates(of: Session) -> list[tuple[tuple[str, ...], set[str]]]:
    """The groups of every update of a step, and the networks of which weights or running statistics moved."""
    calls = []

    def seen(groups: Any, loss_fn: Any, moved: set[str]) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        calls.append((names, {name.partition(".")[0] for name in moved}))

    of.algorithm.step(of.stream, Watched(of.algorithm, of.updater, seen))
    return calls


@pytest.mark.parametrize("mode", MODES)
def test_updates_come_in_the_order_of_algorithm_1_and_move_their_own_networks(mode: str) -> None:
    informed = mode in ("supervised", "unsupervised")
    improved = ("decoder", "code_generator", *["q"] * informed)
    calls = updates(session(MODES[mode]))
    assert [groups for groups, _ in calls] == [("code_critic",), ("encoder", "decoder"), ("image_critic",), improved]
    assert all(moved == set(groups) for groups, moved in calls)


@pytest.mark.parametrize(
    ("switches", "improved"),
    [
        ("", ()),
        ("A", ("code_generator", "q")),
        ("AB", ("code_generator", "q")),
        ("AC", ("decoder", "code_generator", "q")),
        ("ABC", ("decoder", "code_generator", "q")),
        ("BC", ("decoder", "q")),
        ("B", ()),
    ],
)
def test_the_rows_of_the_ablation(switches: str, improved: tuple[str, ...]) -> None:
    keys = {"A": "learned_prior", "B": "perceptual", "C": "decoder_in_both"}
    overrides = [f"model.{key}={letter in switches}" for letter, key in keys.items()]
    row = session("learned_prior_aae_supervised", *overrides)
    judged = ("image_critic",)
    expected = [("code_critic",), ("encoder", "decoder"), *[judged] * bool(switches), *[improved] * bool(improved)]
    assert [groups for groups, _ in updates(row)] == expected
    assert set(row.algorithm.groups) | row.algorithm.without == set(GROUPS)
    # Without a learned prior the code is the label and the noise.
    (prior,), noise = aae(row).priors(torch.tensor([7])).values(), Noise.of(1)
    given = torch.cat([F.one_hot(torch.tensor([7]), 10), noise.normal("prior", 3)], 1)
    row.algorithm.float().eval()
    assert torch.equal(prior(noise), given) == ("A" not in switches)


def test_the_aae_of_its_own_file_is_the_row_without_any_switch() -> None:
    off = [f"model.{key}=false" for key in ("learned_prior", "perceptual", "decoder_in_both")]
    one, other = session("aae"), session("learned_prior_aae", *off)
    one.steps(2), other.steps(2)
    assert difference(one.weights(), other.weights()) == 0


def test_the_decoder_has_one_adam_state_over_both_phases() -> None:
    trained = session(MODES["plain"])
    trained.steps(3)
    steps = {
        name: {float(s["step"]) for s in g.optimizer.state.values()} for name, g in trained.updater.groups.items()
    }
    assert steps == {name: {6.0 if name == "decoder" else 3.0} for name in trained.algorithm.groups}


def test_a_scaled_gradient_leaves_the_value_alone() -> None:
    x = torch.randn(5, requires_grad=True)
    y = scaled_gradient(x, 0.3)
    y.square().sum().backward()
    assert torch.equal(x, y)
    torch.testing.assert_close(x.grad, 0.3 * 2 * x.detach())


@pytest.mark.parametrize("overrides", [(), ("model.feature_error=sum",), ("model.perceptual=false",)])
def test_encoder_and_decoder_get_their_own_weights_of_one_backward(overrides: tuple[str, ...]) -> None:
    """Against two backwards, one for each network."""
    of = session("learned_prior_aae_supervised", "model.encoder_weight=3.0", "model.decoder_weight=0.5", *overrides)
    algorithm, batch = aae(of), next(of.stream)
    nets = {"encoder": algorithm.encoder, "decoder": algorithm.decoder}

    def gradients(loss: torch.Tensor, net: torch.nn.Module) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))

    joint = sum(algorithm.autoencoder_loss(batch).values())
    s = F.one_hot(batch.labels, 10).double()
    x = F.pad(batch.x, [4] * 4, value=-1)
    code = algorithm.encoder(x)
    shown = algorithm.decoder(code)
    error = (x - shown).square().mean()
    if algorithm.perceptual:
        none = x.new_zeros(2 * len(x), 0)
        features = algorithm.image_critic(torch.cat([x, shown]), none)[1].chunk(2)
        error = squared_error(*features, "sum" if overrides else "mean")
    fool = fooling_loss(algorithm.code_critic(code, s))
    expected = {"encoder": fool + 3.0 * error, "decoder": 0.5 * error}
    for name, net in nets.items():
        for got, wanted in zip(gradients(joint, net), gradients(expected[name], net), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_what_one_does(mode: str) -> None:
    config = make_config(MODES[mode], "model.gaussian_encoder=true")
    expected, metrics = train(config, 5)
    for strategy in ("ddp", "fsdp"):
        shared = make_config(MODES[mode], "model.gaussian_encoder=true", f"trainer.strategy={strategy}")
        for weights, seen in launch(2, train, shared, 5):
            assert difference(expected, weights) < 1e-8
            assert seen == pytest.approx(metrics, rel=1e-6, abs=1e-9)


def test_every_phase_draws_its_own_noise_and_category() -> None:
    of = session(MODES["unsupervised"])
    algorithm, batch = aae(of), next(of.stream)
    first, second = algorithm.conditions.own(batch), algorithm.conditions.afresh(batch)
    assert first.shape == second.shape == (16, 10)
    assert (first.sum(1) == 1).all() and not torch.equal(first, second)
    assert len(drawn_categories(algorithm, 500)) == 10


def drawn_categories(algorithm: LearnedPriorAAE, count: int) -> set[int]:
    noise = Noise.of(count)
    return set(algorithm.conditions.mode.prior(noise, None, 10, "s2").argmax(1).tolist())


def test_supervised_codes_are_judged_with_the_images_own_labels_and_samples_made_for_drawn_ones() -> None:
    of = session(MODES["supervised"])
    algorithm, batch = aae(of), next(of.stream)
    assert batch.labels is not None
    assert algorithm.conditions.own(batch).argmax(1).tolist() == batch.labels.tolist()
    assert algorithm.conditions.afresh(batch).argmax(1).tolist() != batch.labels.tolist()


def test_a_sentence_reaches_both_critics_and_the_generator() -> None:
    of = session(MODES["text"])
    algorithm, batch = aae(of), next(of.stream)
    assert batch.embeddings is not None
    other = Batch(batch.x, batch.noise, batch.labels, embeddings=batch.embeddings + 1)
    for loss in (algorithm.code_critic_loss, algorithm.image_critic_loss, algorithm.prior_loss):
        assert not torch.equal(*(torch.stack(list(loss(b).values())) for b in (batch, other)))
    assert "q" not in algorithm.groups


def test_without_a_trained_trunk_q_alone_learns_the_category() -> None:
    on, off = (session(MODES["supervised"], f"model.q_trains_trunk={v}").steps(1) for v in (True, False))
    assert "loss/image_critic/information" in on and "loss/image_critic/information" not in off
    assert "loss/decoder+code_generator+q/information" in off


def test_digits_are_padded_with_black_and_cropped_again() -> None:
    config = configs.read(configs.compose(["model=learned_prior_aae", "model.width=2"]))
    algorithm = build_algorithm(config, DataFacts((1, 28, 28)))
    assert isinstance(algorithm, LearnedPriorAAE)
    x = torch.rand(2, 1, 28, 28)
    padded = algorithm.padded(x)
    assert padded.shape == (2, 1, 32, 32) and padded[:, :, [0, 1, 30, 31]].eq(-1).all()
    assert torch.equal(padded[:, :, 2:30, 2:30], x)
    assert algorithm.decode(torch.zeros(2, 8)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(("side", "stride", "filters"), [(32, 1, 4), (64, 2, 8)])
def test_the_networks_are_those_of_the_tables(side: int, stride: int, filters: int) -> None:
    shape, w, x = (3, side, side), 3, torch.rand(2, 3, side, side)
    encoder, decoder, critic = (
        ResidualEncoder(shape, 10, 5, w),
        ResidualDecoder(shape, 5, w),
        ImageCritic(shape, 0, w),
    )
    first = encoder.body[0]
    assert isinstance(first, torch.nn.Conv2d) and first.stride == (stride, stride)
    assert encoder(x).shape == (2, 5) and decoder(torch.rand(2, 5)).shape == x.shape
    logits, features, hidden = critic(x, x.new_zeros(2, 0))
    assert logits.shape == (2, 1) and features.shape == (2, 16 * filters * w) and hidden.shape == (2, 1000)

    def block(a: int, b: int, kernel: int, plain: bool = False) -> int:
        return a * b * kernel**2 + b + b * b * 9 + b + (0 if plain else a * b + b)

    count = 3 * w * 9 + w + block(w, w, 3, plain=True) + sum(block(k * w, 2 * k * w, 3) for k in (1, 2, 4))
    assert sum(p.numel() for p in encoder.parameters()) == count + 8 * w * 10 + 20 + 10 * 5 + 5
    ups = [(8, 4), (4, 2), (2, 1), *[(1, 1)] * (side == 64)]
    count = 5 * 8 * w * 16 + 16 * w + sum(block(a * w, b * w, 4) for a, b in ups) + w * 3 * 9 + 3
    assert sum(p.numel() for p in decoder.parameters()) == count


@pytest.mark.parametrize(
    ("overrides", "facts", "message"),
    [
        (["model.mode=supervised"], DataFacts((1, 28, 28)), "model.mode needs labels"),
        (["model.mode=text"], DataFacts((1, 28, 28)), "model.mode needs embeddings"),
        (["model.mode=unsupervised"], DataFacts((1, 28, 28)), "code_dim=8: there are 10 numbers of condition"),
        (["model.learned_prior=false", "model.noise_dim=7"], DataFacts((1, 28, 28)), "make up the code"),
        ([], DataFacts((1, 128, 128)), "at most 64, got 128 x 128"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], facts: DataFacts, message: str) -> None:
    config = configs.read(configs.compose(["model=learned_prior_aae", "model.width=2", *overrides]))
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config, facts)
