"""The world size, the strategy and micro-batching do not change the mathematics."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.harness import MODELS, difference, make_config, train, train_each
from tests.processes import launch

# Every class in every mode; the files for larger images have the same code.
CONFIGURED = sorted({*MODELS, "stackedwae_svhn", "stackedwae_celeba"} - {"adversary"})
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


@pytest.mark.parametrize("model", CONFIGURED)
def test_a_step_of_every_configured_model_is_the_same_in_two_processes(model: str) -> None:
    batch = "trainer.batch_size=4"
    expected, metrics = train(make_config(model, batch), 1)
    ways = [make_config(model, batch, *WAYS[way][1]) for way in ("ddp2", "fsdp2")]
    for weights, seen in chain.from_iterable(launch(2, train_each, ways, 1)):
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
