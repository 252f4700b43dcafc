"""The world size, the strategy and micro-batching do not change the mathematics."""

from __future__ import annotations

import pytest

from dtrain.config import CONFIGS
from tests.harness import difference, make_config, train
from tests.processes import launch

CONFIGURED = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
WAYS = {
    "ddp2": (2, ()),
    "ddp4": (4, ()),
    "fsdp2": (2, ("trainer.strategy=fsdp",)),
    "hsdp2x2": (4, ("trainer.strategy=fsdp", "trainer.shard_size=2")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["stackedwae", "adversary", "swae"])
def test_any_world_trains_the_same_parameters(model: str, way: str) -> None:
    world, overrides = WAYS[way]
    steps = 20 if world == 2 else 8
    expected, metrics = train(make_config(model), steps)
    for weights, seen in launch(world, train, make_config(model, *overrides), steps):
        assert difference(expected, weights) < 1e-8
        assert seen.keys() == metrics.keys()
        for key, value in metrics.items():
            assert seen[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


CONVOLUTIONAL = ("stackedwae_svhn", "stackedwae_celeba", "wae")


@pytest.mark.parametrize(
    ("model", "way"), [*((m, "fsdp2") for m in CONFIGURED), *((m, "ddp2") for m in CONVOLUTIONAL)]
)
def test_a_step_of_every_configured_model_is_the_same_in_two_processes(model: str, way: str) -> None:
    world, overrides = WAYS[way]
    batch = "trainer.batch_size=4"
    expected, metrics = train(make_config(model, batch), 1)
    for weights, seen in launch(world, train, make_config(model, batch, *overrides), 1):
        assert difference(expected, weights) < 1e-7
        for key, value in metrics.items():
            assert seen[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_accumulate_the_gradient_of_the_whole_batch(world: int) -> None:
    expected, metrics = train(make_config("adversary"))
    config = make_config("adversary", "trainer.micro_batches=4")
    results = [train(config)] if world == 1 else launch(world, train, config)
    for weights, seen in results:
        assert difference(expected, weights) < 1e-10
        assert seen["grad_norm/encoder+decoder/encoder"] == pytest.approx(
            metrics["grad_norm/encoder+decoder/encoder"]
        )
