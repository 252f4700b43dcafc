"""The update step: what it moves, what it records, and the traps of sharding, freezing and batch coupling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.config import ConfigError, OptimizerConfig
from dtrain.distributed import average_buffers
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, DataFacts, Terms
from dtrain.tensors import training_state
from dtrain.update import learning_rate
from dtrain.world import gather, start
from tests.harness import Session, Watched, difference, make_config, train
from tests.processes import launch

FSDP = "trainer.strategy=fsdp"


def moved_by_each_update(*overrides: str) -> dict[str, set[str]]:
    """For every update of one adversarial step, the groups whose weights it changed."""
    session = Session(make_config("adversary", *overrides), start("cpu", timeout=60))
    moved: dict[str, set[str]] = {}

    def seen(groups: Any, loss_fn: Any, keys: set[str]) -> None:
        moved.setdefault(loss_fn.__name__, set()).update(k.split(".")[0] for k in keys)

    session.algorithm.step(session.stream, Watched(session.algorithm, session.updater, seen))
    return moved


EXPECTED = {
    "critic_loss": {"image_critic"},
    "autoencoder_loss": {"encoder", "decoder"},
    "code_loss": {"code_critic"},
    "prior_loss": {"decoder"},
}


def test_each_update_changes_exactly_its_groups() -> None:
    assert moved_by_each_update() == EXPECTED


def test_freezing_reaches_the_gradients_of_sharded_networks_after_no_grad_forwards() -> None:
    """Traps 1 and 2: a no_grad forward must reshard, and gradients come by freezing, not by backward(inputs=)."""
    for moved in launch(2, moved_by_each_update, FSDP):
        assert moved == EXPECTED


def feature_gradient(*overrides: str) -> Tensor:
    """Gradient of the encoder from the features that the critic's forward returns beside its logits."""
    session = Session(make_config("adversary", *overrides), start("cpu", timeout=60))

    def features_only(batch: Any) -> Terms:
        return {"features": session.algorithm.autoencoder_loss(batch)["features"]}  # type: ignore[operator]

    session.updater(("encoder", "decoder"), features_only, next(session.stream))
    return torch.tensor([session.updater.read(session.world).values["grad_norm/encoder+decoder/encoder"]])


def test_features_are_an_output_of_forward_so_that_sharded_critics_give_them_with_gradient() -> None:
    """Trap 5."""
    alone = feature_gradient()
    assert alone > 0
    for seen in launch(2, feature_gradient, FSDP):
        torch.testing.assert_close(seen, alone)


class Potential(Algorithm):
    """A loss on the norm of a gradient, as in Eq. 18 of AE-OT."""

    replicated = frozenset({"potential"})

    def __init__(self, data: DataFacts, *, declared: bool = True) -> None:
        super().__init__()
        self.potential = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1))
        self.groups = {"potential": ("potential",)}
        if not declared:
            self.replicated = frozenset()

    def step(self, batches: Any, update: Any) -> None:
        update("potential", self.loss, next(batches))

    def loss(self, batch: Any) -> Terms:
        z = batch.noise.normal("z", 4)
        height = self.potential(z)
        slope = torch.func.grad(lambda at: self.potential(at).sum())(z)
        return {"height": height.square().mean(), "slope": (slope.flatten(1).norm(dim=1) - 1).square().mean()}


def potential_config(*overrides: str) -> Any:
    config = make_config("adversary", *overrides)
    return config.model_copy(update={"model": {"_target_": "tests.test_update.Potential"}})


def test_gradients_of_gradients_stay_replicated_and_compile() -> None:
    """Trap 3: declared groups train under fsdp and with compile as they do alone."""
    expected, _ = train(potential_config())
    for weights, _ in launch(2, train, potential_config(FSDP, "trainer.compile=true")):
        assert difference(expected, weights) < 1e-7


def undeclared(*overrides: str) -> str:
    config = potential_config(*overrides)
    config.model["declared"] = False
    try:
        train(config, steps=1)
    except ConfigError as e:
        return str(e)
    return "trained"


def test_undeclared_double_backward_of_a_sharded_network_is_refused_with_the_remedy() -> None:
    for message in launch(2, undeclared, FSDP):
        assert "Potential.replicated" in message
        assert "potential" in message


def test_the_optimizer_state_is_complete_right_after_an_update_that_froze_the_rest() -> None:
    """Trap 4."""
    session = Session(make_config("adversary"), start("cpu"))
    session.steps(1)
    session.updater("image_critic", session.algorithm.critic_loss, next(session.stream))  # type: ignore[arg-type]
    session.updater.unfreeze()
    state = training_state(session.algorithm, session.updater)
    names = {k.removeprefix("model.") for k in state if k.startswith("model.")}
    assert {k for k in state if k.startswith("optim.")} == {
        f"optim.{n}.{s}" for n in names for s in ("exp_avg", "exp_avg_sq", "step")
    }


def gathered_mmd() -> tuple[float, Tensor]:
    world = start("cpu", timeout=60)
    codes = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = codes[world.rank :: world.size].clone().requires_grad_()
    loss = imq_mmd(gather(own), gather(prior[world.rank :: world.size]))
    loss.backward()
    assert own.grad is not None
    # Data-parallel training averages over ranks, so the sum over ranks comes back divided by their number.
    grad = torch.zeros_like(codes)
    grad[world.rank :: world.size] = own.grad / world.size
    return float(loss.detach()), grad


def test_mmd_of_the_gathered_batch_is_that_of_one_process_and_the_mean_of_parts_is_not() -> None:
    """Trap 6."""
    ((value, grad),) = launch(1, gathered_mmd)
    results = launch(4, gathered_mmd)
    for seen, _ in results:
        assert seen == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(sum(g for _, g in results), grad)
    codes = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [float(imq_mmd(codes[r::4], prior[r::4])) for r in range(4)]
    assert abs(sum(parts) / 4 - value) > 1e-3


def test_micro_batching_a_coupled_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.micro_batches=2.*MMD.*allowed: 1"):
        Session(make_config("stackedwae", "trainer.micro_batches=2"), start("cpu"))


def drifting_buffers() -> tuple[list[Tensor], list[Tensor]]:
    world = start("cpu", timeout=60)
    session = Session(make_config("stackedwae", "trainer.sync_batchnorm=false"), world)
    session.steps(3)
    floats = [b for b in session.algorithm.buffers() if b.is_floating_point()]
    before = [b.clone() for b in floats]
    average_buffers(session.algorithm, world)
    return before, floats


def test_buffers_of_unsynchronised_ranks_drift_and_are_averaged_before_use() -> None:
    """Trap 7."""
    (first, agreed), (second, also) = launch(2, drifting_buffers)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b, mean, same in zip(first, second, agreed, also, strict=True):
        torch.testing.assert_close(mean, (a + b) / 2)
        assert torch.equal(mean, same)


def averaged_weights(*overrides: str) -> dict[str, Tensor]:
    config = make_config("adversary", "optim.default.ema=0.9", *overrides)
    session = Session(config, start("cpu", timeout=60))
    metrics = session.steps(10)
    assert all(isinstance(v, float) for v in metrics.values())
    trained = session.weights()
    with session.updater.averaged():
        averaged = session.weights()
    assert difference(trained, averaged) > 1e-4
    assert difference(trained, session.weights()) == 0
    return averaged


def test_averaged_weights_of_shards_are_those_of_one_process() -> None:
    """Trap 9."""
    expected = averaged_weights()
    for averaged in launch(2, averaged_weights, FSDP):
        assert difference(expected, averaged) < 1e-8


def clipped(*overrides: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    return train(
        make_config("adversary", "optim.groups.encoder.clip_norm=1e-3", "optim.default.name=sgd", *overrides)
    )


def test_clipping_bounds_the_step_of_its_group_only_and_is_the_same_when_sharded() -> None:
    expected, metrics = clipped()
    free, _ = train(make_config("adversary", "optim.default.name=sgd"))
    assert metrics["grad_norm/encoder+decoder/encoder"] > 1e-3
    assert any(not torch.equal(expected[k], free[k]) for k in free if k.startswith("model.encoder"))
    for weights, _ in launch(2, clipped, FSDP):
        assert difference(expected, weights) < 1e-8


def schedule(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig(lr=1.0, **settings)


def test_learning_rates_are_functions_of_images_seen() -> None:
    assert learning_rate(schedule(), 10**6, 100) == 1.0
    assert learning_rate(schedule(warmup_images=100), 25, 1000) == 0.25
    assert learning_rate(schedule(schedule="cosine"), 250, 1000) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(schedule(schedule="cosine", decay_images=500), 800, 1000) == 0.0
    assert learning_rate(schedule(schedule="step", decay_images=100, decay_factor=0.5), 250, 1000) == 0.25


def precision_run(precision: str, *overrides: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    return train(make_config("stackedwae", f"trainer.precision={precision}", *overrides), steps=20, double=False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_close_to_fp32_with_float32_weights(precision: str) -> None:
    _, exact = precision_run("fp32")
    weights, metrics = precision_run(precision)
    assert metrics["loss/all"] == pytest.approx(exact["loss/all"], rel=0.05)
    assert {w.dtype for w in weights.values()} <= {torch.float32, torch.int64}
    for _, seen in launch(2, precision_run, precision, FSDP):
        assert seen["loss/all"] == pytest.approx(exact["loss/all"], rel=0.05)


def test_fp16_skips_the_step_of_an_overflow_and_halves_its_scale() -> None:
    session = Session(make_config("adversary", "trainer.precision=fp16"), start("cpu"), double=False)
    session.steps(1)
    before, scale = session.weights(), session.updater.scalers["image_critic"].get_scale()
    batch = next(session.stream)

    def overflowing(batch: Any) -> Terms:
        return {k: v * 1e30 for k, v in session.algorithm.critic_loss(batch).items()}  # type: ignore[operator]

    session.updater("image_critic", overflowing, batch)
    assert difference(before, session.weights()) == 0
    assert session.updater.scalers["image_critic"].get_scale() == scale / 2
    assert session.updater.scalers["code_critic"].get_scale() == scale


def test_compiled_losses_train_like_eager_ones() -> None:
    expected, _ = train(make_config("adversary"), steps=3)
    weights, _ = train(make_config("adversary", "trainer.compile=true"), steps=3)
    assert difference(expected, weights) < 1e-7


@pytest.mark.parametrize("model", ["stackedwae", "stackedwae_svhn"])
def test_recomputed_activations_change_neither_weights_nor_running_statistics(model: str) -> None:
    """The count of batches included."""
    batch = () if model == "stackedwae" else ("trainer.batch_size=4",)
    expected, _ = train(make_config(model, *batch), steps=2)
    weights, _ = train(make_config(model, *batch, "trainer.activation_checkpointing=true"), steps=2)
    assert any(k.endswith("num_batches_tracked") for k in expected)
    assert difference(expected, weights) < 1e-12


def running(key: str, weights: dict[str, Tensor]) -> Tensor:
    return next(v for k, v in weights.items() if k.startswith(f"model.{key}.") and k.endswith("num_batches_tracked"))


def test_running_statistics_advance_once_for_each_update_of_their_own_group() -> None:
    """Of SWAE's step, the critic's update and the codes leave the encoder's alone; stage II updates k times."""
    weights, _ = train(make_config("swae", "model.inner_steps=3"), steps=2)
    assert int(running("encoder", weights)) == int(running("critic", weights) / 2) == 2
    assert int(running("heads.normal.encoder", weights)) == 6


def test_values_are_computed_in_the_runs_precision_and_leave_running_statistics_alone() -> None:
    session = Session(make_config("swae", "trainer.precision=bf16"), start("cpu"), double=False)
    seen: list[torch.dtype] = []
    linear = next(m for m in session.algorithm.encoder.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = session.weights()
    h, _ = session.updater.value(session.algorithm.codes, next(session.stream))
    assert seen == [torch.bfloat16] and h.dtype == torch.float32 and not h.requires_grad
    assert difference(before, session.weights()) == 0


def test_activation_checkpointing_is_refused_where_no_network_offers_it() -> None:
    with pytest.raises(ConfigError, match="no network of Adversary offers it"):
        Session(make_config("adversary", "trainer.activation_checkpointing=true"), start("cpu"))


def test_unknown_groups_are_named() -> None:
    with pytest.raises(ConfigError, match=r"optim\.groups\.level9.*encoder"):
        Session(make_config("adversary", "optim.groups.level9.lr=1"), start("cpu"))


def test_groups_have_their_own_learning_rate() -> None:
    session = Session(make_config("stackedwae", "optim.groups.level2.lr=0.5"), start("cpu"))
    metrics = session.steps(1)
    assert (metrics["lr/level1"], metrics["lr/level2"]) == (1e-3, 0.5)
