"""The contract of every model in configs/model: builds, trains, moves exactly its groups, saves and loads exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import CONFIGS, Config, ConfigError
from dtrain.data.batch import Batch
from dtrain.distributed import distribute
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm
from dtrain.noise import Noise
from dtrain.state import model_state
from dtrain.update import Updater
from dtrain.world import World
from tests.harness import Watched

MODELS = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
IMAGE = {
    "stackedwae": (1, 28, 28),
    "wae_hierarchical": (1, 28, 28),
    "stackedwae_svhn": (3, 32, 32),
    "stackedwae_celeba": (3, 64, 64),
    "swae": (1, 28, 28),
    "swae_cifar10": (3, 32, 32),
    "swae_celeba": (3, 64, 64),
    "wae": (1, 28, 28),
    "wae_celeba": (3, 64, 64),
}
# Eq. 8 has no use for the upper encoders.
UNTRAINED = {"wae_hierarchical": ("encoders.1", "encoders.2", "encoders.3", "encoders.4")}


def built(name: str) -> tuple[Config, Algorithm, Updater]:
    config = configs.read(configs.compose([f"model={name}", "trainer.batch_size=8"]))
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
    unowned = {id(p) for net in UNTRAINED.get(name, ()) for p in algorithm.get_submodule(net).parameters()}
    assert set(owned) | unowned == {id(p) for p in algorithm.parameters()}
    assert not set(owned) & unowned


@pytest.mark.parametrize("name", MODELS)
def test_two_steps_are_finite_and_every_update_moves_exactly_its_groups(name: str) -> None:
    """Weights and running statistics."""
    _, algorithm, updater = built(name)
    updated: set[str] = set()
    statistics = {k for k, b in algorithm.named_buffers() if b.is_floating_point()}

    def owned(names: Any) -> tuple[str, ...]:
        return tuple(f"{path}." for n in names for path in algorithm.groups[n])

    def seen(groups: Any, loss_fn: Any, moved: set[str]) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        assert all(key.startswith(owned(names)) for key in moved), groups
        for group in names:
            assert any(key.startswith(owned([group])) for key in moved), group
        assert {k for k in statistics if k.startswith(owned(names))} <= moved
        updated.update(names)

    stream = batches(algorithm, IMAGE[name])
    for _ in range(2):
        algorithm.step(stream, Watched(algorithm, updater, seen))
    assert updated == set(algorithm.groups)
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
    other = build_algorithm(configs.read(configs.compose([f"model={name}", "seed=1"])), IMAGE[name])
    stored = torch.load(tmp_path / "state.pt")
    assert any(not torch.equal(v, stored[k]) for k, v in model_state(other).items())
    for key, tensor in model_state(other).items():
        tensor.copy_(stored[key])
    assert all(torch.equal(v, stored[k]) for k, v in model_state(other).items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.table.1.latent=[1,8,8]", r"model\.table\.1\.latent.*16 x 16"),
        ("model.table.0.kernel=4", "odd kernel"),
    ],
)
def test_a_wrong_table_is_refused(override: str, message: str) -> None:
    config = configs.read(configs.compose(["model=stackedwae_svhn", override]))
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config, (3, 32, 32))


@pytest.mark.parametrize("name", ["stackedwae", "wae_hierarchical"])
def test_the_paper_model_has_the_papers_sizes(name: str) -> None:
    _, algorithm, _ = built(name)
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


TABLES = {  # kernel, filters, resample, latent features, side: Figure 10
    "stackedwae_svhn": [
        (5, 64, True, 2, 16), (3, 64, False, 1, 16), (3, 96, True, 2, 8),
        (3, 96, False, 1, 8), (3, 128, True, 2, 4), (3, 128, False, 1, 4),
    ],
    "stackedwae_celeba": [
        (7, 64, True, 8, 32), (5, 64, False, 6, 32), (3, 64, False, 4, 32),
        (3, 64, True, 8, 16), (3, 96, False, 6, 16), (3, 96, False, 4, 16),
        (3, 96, True, 8, 8), (3, 128, False, 6, 8), (3, 128, False, 4, 8), (3, 128, True, 8, 4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_convolutional_levels_have_the_shapes_and_sizes_of_figure_10(name: str) -> None:
    _, algorithm, _ = built(name)
    algorithm.eval()
    x, below, total = torch.zeros(1, *IMAGE[name]), 3, 0
    assert algorithm.levels == len(TABLES[name])

    def network(inputs: int, kernel: int, filters: int, wide: int, outputs: int) -> int:
        """Two convolutions with batch norm, a resampling one, a shortcut, batch norm, and one with bias."""
        convolutions = inputs * filters + filters**2 + filters * wide + wide * outputs
        return kernel**2 * (convolutions + inputs * wide) + 4 * filters + 2 * wide + outputs

    for level, (kernel, filters, resample, features, side) in enumerate(TABLES[name], start=1):
        assert algorithm.encode(x, level).shape == (1, features, side, side)
        up, down = (2 * filters, filters // 2) if resample else (filters, filters)
        total += network(below, kernel, filters, up, 2 * features)
        total += network(features, kernel, filters, down, below * (2 if level > 1 else 1))
        below = features
    assert sum(p.numel() for p in algorithm.parameters()) == total


@pytest.mark.parametrize(("name", "low"), [("stackedwae_svhn", 0.0), ("stackedwae_celeba", -1.0)])
def test_decoded_pixels_lie_in_the_models_own_range(name: str, low: float) -> None:
    _, algorithm, _ = built(name)
    assert algorithm.value_range == (low, 1.0)
    algorithm.eval()
    codes = 100 * Noise.of(4).normal("codes", *algorithm.latent_shapes[0])
    with torch.no_grad():
        pixels = algorithm.decode(codes)
    assert pixels.min() == pytest.approx(low, abs=0.05) and pixels.max() == pytest.approx(1.0, abs=0.05)


def test_the_ablation_trains_only_the_first_encoder() -> None:
    _, algorithm, updater = built("wae_hierarchical")
    before = {k: v.clone() for k, v in model_state(algorithm).items()}
    algorithm.step(batches(algorithm, IMAGE["wae_hierarchical"]), updater)
    moved = {k.rsplit(".body", 1)[0] for k, v in model_state(algorithm).items() if not torch.equal(v, before[k])}
    assert moved == {"model.encoders.0", *(f"model.decoders.{i}" for i in range(5))}


def test_the_ablation_matches_codes_with_the_learned_chain() -> None:
    """Eq. 8 by hand: the MMD of q(z_1) and of z_1 drawn from z_5 down, in the 32 dimensions of z_1."""
    _, algorithm, _ = built("wae_hierarchical")
    batch = next(batches(algorithm, IMAGE["wae_hierarchical"]))
    algorithm.eval()
    with torch.no_grad():
        terms = algorithm.validate(batch)
        mean, variance = algorithm.encoders[0](batch.x)
        z = mean + variance.sqrt() * batch.noise.normal("z1", 32)
        learned = batch.noise.normal("prior", 2)
        for i in (4, 3, 2, 1):
            mean, variance = algorithm.decoders[i](learned)
            learned = mean + variance.sqrt() * batch.noise.normal(f"decode{i}", *mean.shape[1:])
        assert learned.shape == (8, 32)
        torch.testing.assert_close(terms["mmd"], 10.0 * imq_mmd(z, learned))
        torch.testing.assert_close(terms["x"], (algorithm.decode(z) - batch.x).square().sum((1, 2, 3)).mean())


@pytest.mark.parametrize("name", ["stackedwae_svhn", "stackedwae_celeba"])
def test_channels_last_and_width_change_no_shape(name: str) -> None:
    config = configs.read(configs.compose([f"model={name}", "model.width=2", "trainer.batch_size=8"]))
    wide = build_algorithm(config, IMAGE[name])
    _, narrow, _ = built(name)
    assert sum(p.numel() for p in wide.parameters()) > 3 * sum(p.numel() for p in narrow.parameters())
    x = next(batches(wide, IMAGE[name])).x
    wide.eval()
    with torch.no_grad():
        expected = wide.reconstruct(x, 3)
        distribute(wide, World(), strategy="ddp", shard_size=None, sync_batchnorm=True, channels_last=True)
        kernels = [p for p in wide.parameters() if p.ndim == 4 and min(p.shape) > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        torch.testing.assert_close(wide.reconstruct(x, 3), expected, rtol=1e-4, atol=1e-4)


def test_the_wae_objective_is_tolstikhins() -> None:
    _, algorithm, _ = built("wae")
    batch = next(batches(algorithm, IMAGE["wae"]))
    with torch.no_grad():
        terms = algorithm.validate(batch)
        z = algorithm.encode(batch.x)
        error = (algorithm.decode(z) - batch.x).square().sum() / len(batch)
    assert float(terms["x"]) == pytest.approx(0.05 * float(error))
    assert float(terms["mmd"]) == pytest.approx(10 * float(imq_mmd(z, batch.noise.normal("prior", 8))), rel=1e-4)
