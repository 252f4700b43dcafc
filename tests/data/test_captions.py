"""Of several captions an image a step draws one, the same on any number of processes and after any restart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.build import facts
from dtrain.data.batch import Batch
from dtrain.data.build import build_loader
from dtrain.data.shards import Split, open_split
from dtrain.models.base import Algorithm
from dtrain.world import World
from tests.data.backends import BACKENDS, backends
from tests.harness import evaluation_of, make_config, noise

COUNT, CAPTIONS = 60, 4


@pytest.fixture(scope="session")
def captioned_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images; embeddings [60, 4, 3], whose first number is the sample's and whose second is the caption's."""
    path = tmp_path_factory.mktemp("shards") / "captioned"
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    source = array_source(images, np.arange(COUNT), {"what": "random"}, None, "random")
    embeddings = np.zeros((COUNT, CAPTIONS, 3), dtype=np.float32)
    embeddings[:, :, 0], embeddings[:, :, 1] = np.arange(COUNT)[:, None], np.arange(CAPTIONS)
    source.arrays["embeddings"] = embeddings  # type: ignore[index]
    write_split(path, source, ("npy", "beton", "jpg", "tar"))
    return path


@pytest.fixture
def captioned(captioned_shards: Path) -> Split:
    return open_split(captioned_shards)


def stream(split: Split, options: dict[str, Any], start: int = 0, **more: Any) -> Iterator[Batch]:
    loader = build_loader(split=split, batch_size=16, value_range=(0.0, 1.0), seed=3, **options, **more)
    return loader.batches(start)


def drawn(batches: Iterator[Batch], steps: int) -> dict[int, list[float]]:
    """The embedding at each position of the stream."""
    found = {}
    for batch in itertools.islice(batches, steps):
        assert batch.embeddings is not None and batch.embeddings.shape == (len(batch), 3)
        assert torch.equal(batch.embeddings[:, 0].long(), batch.index)  # type: ignore[arg-type]
        found |= dict(zip(batch.noise.position.tolist(), batch.embeddings.tolist(), strict=True))
    return found


RESIDENT = BACKENDS["resident"][0]


@backends()
def test_every_loader_draws_the_same_captions_at_any_world_size_and_after_a_restart(
    captioned: Split, options: dict[str, Any]
) -> None:
    whole = drawn(stream(captioned, RESIDENT), 12)
    for world in (1, 2):
        for start in (0, 16 * 7):
            found: dict[int, list[float]] = {}
            for rank in range(world):
                found |= drawn(stream(captioned, options, start, rank=rank, world=world), 5)
            assert found == {at: whole[at] for at in range(start, start + 5 * 16)}


def test_all_captions_are_drawn_equally_often_and_anew_in_every_epoch(captioned: Split) -> None:
    rows = torch.tensor(list(drawn(stream(captioned, RESIDENT), 15 * 20).values()))  # 80 epochs
    counts = torch.zeros(COUNT, CAPTIONS)
    counts.index_put_((rows[:, 0].long(), rows[:, 1].long()), torch.ones(len(rows)), accumulate=True)
    assert counts.min() >= 5  # 20 on average
    share = counts.sum(0) / counts.sum()
    assert (share - 0.25).abs().max() < 0.03


@backends()
def test_a_held_out_pass_takes_the_first_caption(captioned: Split, options: dict[str, Any]) -> None:
    loader = build_loader(split=captioned, batch_size=16, value_range=(0.0, 1.0), **options)
    for batch in loader.once():
        assert batch.embeddings is not None and not batch.embeddings[:, 1].any()
        assert torch.equal(batch.embeddings[:, 0].long(), batch.index)  # type: ignore[arg-type]


def test_samples_are_conditioned_on_first_captions_of_the_size_that_the_model_is_told(captioned: Split) -> None:
    class Given(Algorithm):
        condition = "embeddings"

    loader: Any = build_loader(split=captioned, batch_size=16, value_range=(0.0, 1.0), **RESIDENT)
    evaluation = evaluation_of(Given(), loader, loader, World(), make_config("vae").evaluate)
    found = evaluation.condition(noise(5).position)
    assert found is not None and found.tolist() == [[float(i), 0.0, 0.0] for i in range(5)]
    assert facts(captioned).embedding == 3
