"""The contract of every model in configs/model: builds, trains, moves exactly its groups, saves and loads exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain import config as configs
from dtrain.build import build_algorithm
from dtrain.config import Config
from dtrain.data.batch import Batch
from dtrain.distributed import World
from dtrain.models.base import Algorithm
from dtrain.noise import Noise
from dtrain.state import model_state
from dtrain.update import Updater

MODELS = sorted(p.stem for p in (configs.CONFIGS / "model").glob("*.yaml"))
IMAGE = {"stackedwae": (1, 28, 28), "stackedwae_svhn": (3, 32, 32), "stackedwae_celeba": (3, 64, 64)}


def built(name: str) -> tuple[Config, Algorithm, Updater]:
    config = configs.validate(configs.compose([f"model={name}", "trainer.batch_size=8"]))
    algorithm = build_algorithm(config, IMAGE[name])
    return config, algorithm, Updater(algorithm, config.optim, config.trainer, World(), 100)


def batches(algorithm: Algorithm, shape: tuple[int, int, int]) -> Any:
    low, high = algorithm.value_range
    start = 0
    while True:
        x = torch.from_numpy(np.random.default_rng(start).random((8, *shape), dtype=np.float32))
        yield Batch(low + (high - low) * x, Noise.of(8, start=start), torch.arange(8) % 10)
        start += 8


@pytest.mark.parametrize("name", MODELS)
def test_groups_partition_the_parameters(name: str) -> None:
    _, algorithm, updater = built(name)
    owned = [id(p) for group in updater.groups.values() for p in group.params]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in algorithm.parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_two_steps_are_finite_and_every_update_moves_exactly_its_groups(name: str) -> None:
    _, algorithm, updater = built(name)
    moved: set[str] = set()

    def watched(groups: Any, loss_fn: Any, *batch: Any) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        before = {n: [p.clone() for p in g.params] for n, g in updater.groups.items()}
        updater(groups, loss_fn, *batch)
        for group, old in before.items():
            changed = any(not torch.equal(a, b) for a, b in zip(old, updater.groups[group].params, strict=True))
            assert changed == (group in names), group
        moved.update(names)

    stream = batches(algorithm, IMAGE[name])
    for _ in range(2):
        algorithm.step(stream, watched)
    assert moved == set(algorithm.groups)
    metrics = updater.read(World())
    assert metrics.nonfinite is None and metrics.values


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_methods_have_the_promised_shapes(name: str) -> None:
    _, algorithm, _ = built(name)
    algorithm.eval()
    x = next(batches(algorithm, IMAGE[name])).x
    with torch.no_grad():
        for level in range(1, algorithm.levels + 1):
            assert algorithm.reconstruct(x, level).shape == x.shape
            torch.testing.assert_close(
                algorithm.reconstruct(x, level), algorithm.decode(algorithm.encode(x, level), level)
            )
        samples = algorithm.sample(Noise.of(6, seed=1))
        assert samples.shape == (6, *IMAGE[name])
        low, high = algorithm.value_range
        assert low <= float(samples.min()) and float(samples.max()) <= high
        # A sample depends on its own counter only, so any split over ranks draws the same.
        torch.testing.assert_close(algorithm.sample(Noise(1, torch.tensor([4, 5]))), samples[4:])


@pytest.mark.parametrize("name", MODELS)
def test_state_round_trips_exactly(name: str, tmp_path: Path) -> None:
    _, algorithm, _ = built(name)
    torch.save(model_state(algorithm), tmp_path / "state.pt")
    other = build_algorithm(configs.validate(configs.compose([f"model={name}", "seed=1"])), IMAGE[name])
    stored = torch.load(tmp_path / "state.pt")
    assert any(not torch.equal(v, stored[k]) for k, v in model_state(other).items())
    for key, tensor in model_state(other).items():
        tensor.copy_(stored[key])
    assert all(torch.equal(v, stored[k]) for k, v in model_state(other).items())


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("stackedwae_svhn", [(2, 16), (1, 16), (2, 8), (1, 8), (2, 4), (1, 4)]),
        (
            "stackedwae_celeba",
            [(8, 32), (6, 32), (4, 32), (8, 16), (6, 16), (4, 16), (8, 8), (6, 8), (4, 8), (8, 4)],
        ),
    ],
)
def test_convolutional_levels_have_the_shapes_of_figure_10(name: str, shapes: list[tuple[int, int]]) -> None:
    _, algorithm, _ = built(name)
    algorithm.eval()
    x = torch.zeros(1, *IMAGE[name])
    assert algorithm.levels == len(shapes)
    for level, (features, side) in enumerate(shapes, start=1):
        assert algorithm.encode(x, level).shape == (1, features, side, side)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.table.1.latent=[1,8,8]", r"model\.table\.1\.latent.*16 x 16"),
        ("model.table.0.kernel=4", "odd kernel"),
    ],
)
def test_a_wrong_table_is_refused(override: str, message: str) -> None:
    config = configs.validate(configs.compose(["model=stackedwae_svhn", override]))
    with pytest.raises(configs.ConfigError, match=message):
        build_algorithm(config, (3, 32, 32))


def test_the_paper_model_has_the_papers_sizes() -> None:
    _, algorithm, _ = built("stackedwae")
    x = torch.rand(2, 1, 28, 28)
    algorithm.eval()
    assert [tuple(algorithm.encode(x, i).shape) for i in range(1, 6)] == [(2, d) for d in (32, 16, 8, 4, 2)]
    # Per network, two hidden layers of one width h with batch norm: in*h + 2h + h*h + 2h, then (h+1)*out.
    below, hidden, total = [784, 32, 16, 8, 4, 2], [2048, 1024, 512, 256, 128], 0
    for i, h in enumerate(hidden):
        body = h * h + 4 * h
        total += below[i] * h + body + (h + 1) * 2 * below[i + 1]
        total += below[i + 1] * h + body + (h + 1) * below[i] * (2 if i else 1)
    assert sum(p.numel() for p in algorithm.parameters()) == total
