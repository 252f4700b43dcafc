"""The contract of every model in configs/model: builds, trains, moves exactly its groups, saves and loads exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.config import CONFIGS, Config, ConfigError
from dtrain.data.batch import Batch
from dtrain.distributed import distribute
from dtrain.losses.mmd import imq_mmd
from dtrain.models.base import Algorithm, DataFacts
from dtrain.noise import Noise
from dtrain.stream import rows
from dtrain.tensors import model_state
from dtrain.update import Updater
from dtrain.world import World
from tests.harness import Watched, site_of

MODELS = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
CLASSES, EMBEDDING = 10, 16
# Eq. 8 has no use for the upper encoders.
UNTRAINED = {"wae_hierarchical": ("encoders.1", "encoders.2", "encoders.3", "encoders.4")}


class Few:
    """Sixteen training images, for a stage's source to read once."""

    def __init__(self, config: Config) -> None:
        self.config, self.split = config, SimpleNamespace(manifest={"sha256": "0" * 64})

    def __len__(self) -> int:
        return 16

    def once(self) -> Iterator[Batch]:
        for start in (0, 8):
            x = torch.from_numpy(np.random.default_rng(start).random((8, *self.config.data.image_shape))).float()
            yield Batch(x, Noise.of(8, start=start), index=torch.arange(start, start + 8))


def configured(name: str, *overrides: str) -> Config:
    """A model with the data that its file names."""
    return configs.read(configs.compose([f"model={name}", "trainer.batch_size=8", *overrides]))


def data_of(config: Config) -> DataFacts:
    return DataFacts(config.data.image_shape, classes=CLASSES, embedding=EMBEDDING, images=len(Few(config)))


def built(name: str, *overrides: str) -> tuple[Config, Algorithm, Updater]:
    few = ("model.pseudo_inputs=8",) if name.startswith("vampprior") else ()  # each costs what an image does
    config = configured(name, *few, *overrides)
    algorithm = build_algorithm(config, data_of(config))
    return config, algorithm, Updater(algorithm, config.optim, config.trainer, World())


def condition(algorithm: Algorithm, rows: int) -> Tensor | None:
    """For that many samples, where the algorithm wants one."""
    labels, embeddings = torch.arange(rows) % CLASSES, Noise.of(rows, seed=5).normal("embedding", EMBEDDING)
    return {None: None, "labels": labels, "embeddings": embeddings}[algorithm.condition]


def batches(config: Config, algorithm: Algorithm) -> Iterator[Batch]:
    low, high = algorithm.value_range
    start = 0
    while True:
        x = torch.from_numpy(np.random.default_rng(start).random((8, *config.data.image_shape), dtype=np.float32))
        noise = Noise.of(8, start=start)
        labels, embeddings = torch.arange(8) % CLASSES, noise.normal("embedding", EMBEDDING)
        yield Batch(low + (high - low) * x, noise, labels, embeddings=embeddings, index=torch.arange(8))
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
def test_two_steps_are_finite_and_every_update_moves_exactly_its_groups(name: str, tmp_path: Path) -> None:
    """Weights and running statistics; and takes as many batches as its stage says."""
    config, algorithm, updater = built(name)
    updated: set[str] = set()
    statistics = {k for k, _ in algorithm.named_buffers() if k.endswith(("running_mean", "running_var"))}

    def owned(names: Any) -> tuple[str, ...]:
        return tuple(f"{path}." for n in names for path in algorithm.groups[n])

    def seen(groups: Any, loss_fn: Any, moved: set[str]) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        assert all(key.startswith(owned(names)) for key in moved), groups
        for group in names:
            assert any(key.startswith(owned([group])) for key in moved), group
        assert {k for k in statistics if k.startswith(owned(names))} <= moved
        updated.update(names)

    for stage in algorithm.stages():
        source = stage.source(site_of(World(), tmp_path, Few(config))) if stage.source else None
        given = source.batches(0) if source else batches(config, algorithm)
        stream = enumerate((rows(item, 0, 1) for item in given), start=1)
        for i in range(2):
            updater.begin(i, 8 * i, 16)
            stage.step((batch for _, batch in stream), Watched(algorithm, updater, seen))
        assert next(stream)[0] == 2 * stage.batches_per_step + 1
        if source:
            source.close()
    assert updated == set(algorithm.groups)
    metrics = updater.read(World())
    assert metrics.nonfinite is None and metrics.values


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_methods_have_the_promised_shapes(name: str) -> None:
    config, algorithm, _ = built(name)
    if not algorithm.levels:
        return  # its samples are no images
    algorithm.eval()
    x = next(batches(config, algorithm)).x
    with torch.no_grad():
        for level in range(1, algorithm.levels + 1):
            assert algorithm.reconstruct(x, level).shape == x.shape
            torch.testing.assert_close(
                algorithm.reconstruct(x, level), algorithm.decode(algorithm.encode(x, level), level)
            )
        noise, given = Noise.of(6, seed=1), condition(algorithm, 6)
        for prior, codes in algorithm.priors(given).items():
            samples = algorithm.decode(codes(noise))
            assert samples.shape == x[:6].shape, prior
            low, high = algorithm.value_range
            assert low <= float(samples.min()) and float(samples.max()) <= high
            # A sample depends on its own counter only, so any split over ranks draws the same.
            part = algorithm.priors(None if given is None else given[4:])[prior](noise[4:])
            torch.testing.assert_close(algorithm.decode(part), samples[4:])
        codes_of_grid = algorithm.grid(3)
        if codes_of_grid is not None:
            assert algorithm.decode(codes_of_grid, algorithm.levels).shape == (9, *x.shape[1:])


@pytest.mark.parametrize("name", MODELS)
def test_state_round_trips_exactly(name: str, tmp_path: Path) -> None:
    _, algorithm, _ = built(name)
    torch.save(model_state(algorithm), tmp_path / "state.pt")
    _, other, _ = built(name, "seed=1")
    stored = torch.load(tmp_path / "state.pt")
    assert any(not torch.equal(v, stored[k]) for k, v in model_state(other).items())
    for key, tensor in model_state(other).items():
        tensor.copy_(stored[key])
    assert all(torch.equal(v, stored[k]) for k, v in model_state(other).items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.levels.1.latent=[1,8,8]", r"model\.levels\.1: latent.*16 x 16"),
        ("model.levels.0.kernel=4", "odd kernel"),
        (
            "model.levels=[{hidden:4,latent:3},{kernel:3,filters:4,resample:false,latent:[1,2,2]}]",
            r"levels\.1.*dense",
        ),
    ],
)
def test_a_wrong_table_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built("stackedwae_svhn", override)


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
    config, algorithm, _ = built(name)
    algorithm.eval()
    x, below, total = torch.zeros(1, *config.data.image_shape), 3, 0
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
    codes = 100 * Noise.of(4).normal("codes", *algorithm.shapes[1])
    with torch.no_grad():
        pixels = algorithm.decode(codes)
    assert pixels.min() == pytest.approx(low, abs=0.05) and pixels.max() == pytest.approx(1.0, abs=0.05)


def test_the_ablation_trains_only_the_first_encoder() -> None:
    config, algorithm, updater = built("wae_hierarchical")
    before = {k: v.clone() for k, v in model_state(algorithm).items()}
    algorithm.step(batches(config, algorithm), updater)
    moved = {k.rsplit(".body", 1)[0] for k, v in model_state(algorithm).items() if not torch.equal(v, before[k])}
    assert moved == {"model.encoders.0", *(f"model.decoders.{i}" for i in range(5))}


def test_the_ablation_matches_codes_with_the_learned_chain() -> None:
    """Eq. 8 by hand: the MMD of q(z_1) and of z_1 drawn from z_5 down, in the 32 dimensions of z_1."""
    config, algorithm, _ = built("wae_hierarchical")
    batch = next(batches(config, algorithm))
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
    config, wide, _ = built(name, "model.width=2")
    _, narrow, _ = built(name)
    assert sum(p.numel() for p in wide.parameters()) > 3 * sum(p.numel() for p in narrow.parameters())
    x = next(batches(config, wide)).x
    wide.eval()
    with torch.no_grad():
        expected = wide.reconstruct(x, 3)
        distribute(wide, World(), strategy="ddp", shard_size=None, sync_batchnorm=True, channels_last=True)
        kernels = [p for p in wide.parameters() if p.ndim == 4 and min(p.shape) > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        torch.testing.assert_close(wide.reconstruct(x, 3), expected, rtol=1e-4, atol=1e-4)


def test_the_wae_objective_is_tolstikhins() -> None:
    config, algorithm, _ = built("wae_mmd")
    batch = next(batches(config, algorithm))
    with torch.no_grad():
        terms = algorithm.validate(batch)
        z = algorithm.encode(batch.x)
        error = (algorithm.decode(z) - batch.x).square().sum() / len(batch)
    assert float(terms["x"]) == pytest.approx(0.05 * float(error))
    assert float(terms["mmd"]) == pytest.approx(10 * float(imq_mmd(z, batch.noise.normal("prior", 8))), rel=1e-4)


class Misspelt(Algorithm):
    def __init__(self, data: DataFacts) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(1, 1)
        self.groups = {"autoencoder": ("encodr",)}


def test_a_group_that_names_no_network_is_refused() -> None:
    config = configured("wae_mmd").model_copy(update={"model": {"_target_": "tests.test_models.Misspelt"}})
    with pytest.raises(ConfigError, match="names 'encodr', a network that it does not have"):
        build_algorithm(config, data_of(config))
