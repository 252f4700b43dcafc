"""SWAE: its losses against closed forms, and that stage II leaves stage I, and one head the other, alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import ConfigError
from dtrain.losses.adversarial import critic_loss, fooling_loss
from dtrain.models.base import DataFacts
from dtrain.models.swae import SWAE
from dtrain.tensors import model_state
from dtrain.world import World, start
from tests.harness import Session, Watched, difference, make_config
from tests.processes import launch
from tests.runs import execute, freeze, metrics

SMALL = (
    "model=swae", "model.code_dim=3", "model.latent_dim=3", "model.width=4", "model.critic_width=4", "model.hidden=8",
)  # fmt: skip


def test_the_adversarial_losses_are_the_papers() -> None:
    real, fake = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.5, -3.0]).double()

    def log_d(logit: float) -> float:
        return math.log(1 / (1 + math.exp(-logit)))

    ascended = (log_d(2) + log_d(-1)) / 2 + (log_d(-0.5) + log_d(3)) / 2  # 1 - D(l) = D(-l)
    assert float(critic_loss(real, fake)) == pytest.approx(-ascended)
    assert float(fooling_loss(fake)) == pytest.approx(-(log_d(0.5) + log_d(-3)) / 2)
    assert float(fooling_loss(torch.tensor([-200.0]))) == pytest.approx(200)  # no overflow, and a slope of 1


def session(*overrides: str) -> Session:
    return Session(make_config("swae", "trainer.batch_size=8", *overrides), World())


def test_updates_come_in_the_order_of_algorithm_1_and_move_their_own_networks() -> None:
    trained = session()
    calls: list[tuple[str, set[str]]] = []

    def seen(groups: Any, loss_fn: Any, moved: set[str]) -> None:
        calls.append((groups, moved))

    trained.algorithm.step(trained.stream, Watched(trained.algorithm, trained.updater, seen))
    inner = ["critic2_normal", "autoencoder2_normal", "critic2_uniform", "autoencoder2_uniform"]
    assert [groups for groups, _ in calls] == ["critic1", "autoencoder1", *inner, *inner]
    nets = {"critic1": ["critic."], "autoencoder1": ["encoder.", "decoder."]} | {
        f"{kind}2_{prior}": [f"heads.{prior}.{net}." for net in own]
        for prior in ("normal", "uniform")
        for kind, own in (("critic", ["critic"]), ("autoencoder", ["encoder", "decoder"]))
    }
    for groups, moved in calls:
        assert moved and all(name.startswith(tuple(nets[groups])) for name in moved), groups


def test_stage_two_sends_no_gradient_to_stage_one() -> None:
    trained = session()
    algorithm = trained.algorithm
    assert isinstance(algorithm, SWAE)
    h, variance = trained.updater.value(algorithm.codes, next(trained.stream))
    assert not h.requires_grad and not variance.requires_grad
    head = algorithm.first
    sum(head.autoencoder_loss(h, variance).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for net in (algorithm.encoder, algorithm.decoder) for p in net.parameters())
    assert all(p.grad is not None for p in head.encoder.parameters())


def test_the_error_of_codes_is_their_sum_over_the_mean_variance_of_h() -> None:
    trained = session("model.code_weight=0.5")
    algorithm = trained.algorithm
    assert isinstance(algorithm, SWAE)
    h, variance = trained.updater.value(algorithm.codes, next(trained.stream))
    with torch.no_grad():
        decoded, head = algorithm.first.reconstruct(h).tolist(), algorithm.first
        rows, dims = h.tolist(), h.shape[1]
        means = [sum(row[d] for row in rows) / len(rows) for d in range(dims)]
        of_h = sum((row[d] - means[d]) ** 2 for row in rows for d in range(dims)) / (len(rows) * dims)
        assert variance.tolist() == pytest.approx([of_h] * len(rows))
        total = sum((a - b) ** 2 for x, y in zip(rows, decoded, strict=True) for a, b in zip(x, y, strict=True))
        plain = total / len(rows)
        assert float(head.autoencoder_loss(h, variance)["code"]) == pytest.approx(0.5 * plain / of_h)
        head.code_error, head.code_weight = "mean", float(dims)
        assert float(head.autoencoder_loss(h, variance)["code"]) == pytest.approx(plain)  # as Eq. 4 prints it
    watched = head.balance(h, variance, algorithm.gather)
    assert [watched[k].item() for k in ("sum", "relative", "mean")] == pytest.approx(
        [plain, plain / of_h, plain / dims]
    )


def variances() -> tuple[float, float]:
    """Of h, and h's scale in the log."""
    trained = Session(make_config("swae"), start("cpu", timeout=60))
    algorithm: Any = trained.algorithm
    h, variance = trained.updater.value(algorithm.codes, next(trained.stream))
    assert len(h) == len(variance) == 16 // trained.world.size
    return float(variance[0]), float(algorithm.scale(h)["deviation"])


def test_the_variance_of_h_is_that_of_the_whole_batch_on_any_number_of_processes() -> None:
    alone = variances()
    for seen in launch(2, variances):
        assert seen == pytest.approx(alone, rel=1e-12)


def test_the_logged_ratio_is_that_of_the_gradients_of_the_two_terms() -> None:
    trained = session("model.code_weight=3")
    algorithm: Any = trained.algorithm
    batch = next(trained.stream)
    h, variance = trained.updater.value(algorithm.codes, batch)
    head = algorithm.first

    def slope(f: Any, x: torch.Tensor) -> float:
        """The norm of the gradient of f at x, by differences along every coordinate."""
        flat, step, squares = x.detach().flatten(), 1e-5, 0.0
        for i in range(len(flat)):
            up, down = flat.clone(), flat.clone()
            up[i] += step
            down[i] -= step
            squares += float((f(up.view_as(x)) - f(down.view_as(x))) / (2 * step)) ** 2
        return math.sqrt(squares)

    with torch.no_grad():
        z, x = head.encoder(h), algorithm.reconstruct(batch.x)
        error = slope(lambda z: head.terms(h, variance, z, head.decoder(z))["code"], z)
        fool = slope(lambda z: fooling_loss(head.critic(z)), z)
    assert float(head.balance(h, variance, algorithm.gather)["gradient_ratio"]) == pytest.approx(
        error / fool, rel=1e-4
    )
    x = x.requires_grad_()
    slopes = [
        float(torch.autograd.grad(loss, x)[0].norm())
        for loss in ((x - batch.x).square().mean(), 1e-3 * fooling_loss(algorithm.critic(x)))
    ]
    assert float(algorithm.balance1(batch)["gradient_ratio"]) == pytest.approx(slopes[0] / slopes[1])


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_heads_trained_together_equal_each_trained_alone(prior: str) -> None:
    both, alone = session(), session(f"model.priors=[{prior}]")
    first = model_state(both.algorithm)
    with torch.no_grad():
        for key, tensor in model_state(alone.algorithm).items():
            tensor.copy_(first[key])
    both.steps(5)
    alone.steps(5)
    together = {k: v for k, v in both.weights().items() if k in alone.weights()}
    assert difference(together, alone.weights()) == 0


def test_inner_steps_draw_other_noise_and_fresh_batches_other_images() -> None:
    batch = next(session().stream)
    first, second = (batch.noise.inner(i).normal("prior", 3) for i in (0, 1))
    assert not torch.equal(first, second)
    fresh = session("model.fresh_batches=true", "model.inner_steps=3")
    seen = []
    fresh.algorithm.step((seen.append(1) or b for b in fresh.stream), fresh.updater)  # type: ignore[func-returns-value]
    assert len(seen) == 3


def test_without_lambda_there_is_no_image_critic() -> None:
    plain = session("model.lambda_adversary=0")
    assert "critic1" not in plain.algorithm.groups
    metrics = plain.steps(2)
    assert "loss/autoencoder1/fool" not in metrics and metrics["loss/autoencoder1/x"] > 0
    assert "watch/autoencoder1/gradient_ratio" not in metrics and "watch/codes/deviation" in metrics
    assert plain.algorithm.critic_logits(next(plain.stream).x) is None


def test_the_critics_size_is_its_own() -> None:
    def sizes(*overrides: str) -> tuple[int, int]:
        algorithm: Any = session(*overrides).algorithm
        return tuple(sum(p.numel() for p in net.parameters()) for net in (algorithm.decoder, algorithm.critic))  # type: ignore[return-value]

    one, wide, wide_critic = sizes(), sizes("model.width=8"), sizes("model.critic_width=8")
    assert wide[0] > one[0] == wide_critic[0] and wide_critic[1] > one[1] == wide[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.priors=[normal,normal]", "at most once"),
        ("model.priors=[]", "priors"),
        ("model.priors=[cauchy]", "uniform"),
        ("model.critic_strides=2", "34 pixels"),
        ("model.code_error=median", "mean"),
    ],
)
def test_wrong_priors_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_algorithm(configs.read(configs.compose([*SMALL, override])), DataFacts((1, 28, 28)))


def test_the_schedule_spans_the_training_also_where_a_step_takes_several_batches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 1), dtype=np.uint8)
    for split in ("train", "valid", "test"):
        source = array_source(images, np.zeros(32, np.int64), {"what": "noise"}, None, split)
        write_split(tmp_path / "shards" / split, source)
    model = {
        "_target_": "dtrain.models.swae.SWAE", "code_dim": 3, "latent_dim": 3, "width": 4, "hidden": 8,
        "critic_width": 4, "priors": ["normal"], "inner_steps": 2, "fresh_batches": True,
    }  # fmt: skip
    overrides = (
        "data.image_shape=[1,24,24]",
        "trainer.max_steps=8",
        "trainer.log_every=1",
        "optim.default.schedule=cosine",
        "optim.default.lr=1.0",
    )
    run = tmp_path / "run"
    assert execute(freeze(run, tmp_path / "shards", *overrides, model=model)) == 0
    lines = metrics(run, "train")
    assert [line["epoch"] for line in lines] == list(range(1, 9))  # a step takes all 32 images
    seen = [line["lr/autoencoder1"] for line in lines]
    assert seen == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)], abs=1e-6)


def test_a_compiled_step_is_compiled_but_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the noise of an inner step nor its prior may start the compiler again."""
    from torch._dynamo.testing import CompileCounter

    counter, compiled = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn: compiled(fn, backend=counter))
    run = session("trainer.compile=true", "model.inner_steps=4")
    run.steps(1)
    once = counter.frame_count
    run.steps(2)
    assert counter.frame_count == once > 0
