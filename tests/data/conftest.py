"""Small prepared sets in every format."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain.data.shards import Split, open_split


def write_random(path: Path, count: int, side: int, channels: int, formats: tuple[str, ...]) -> None:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    source = array_source(images, np.arange(count), {"what": "random"}, None, "random")
    source.arrays["attributes"] = rng.integers(0, 2, (count, 5), dtype=np.uint8)  # type: ignore[index]
    source.arrays["embeddings"] = rng.standard_normal((count, 3), dtype=np.float32)  # type: ignore[index]
    write_split(path, source, formats)


@pytest.fixture(scope="session")
def colour_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 random images of 12 × 12 × 3 in every format, labelled by their own number."""
    path = tmp_path_factory.mktemp("shards") / "colour"
    write_random(path, 203, 12, 3, ("npy", "beton", "jpg", "tar"))
    return path


@pytest.fixture(scope="session")
def grey_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 random images of 7 × 7 × 1, whose rows do not fill whole 8-byte words."""
    path = tmp_path_factory.mktemp("shards") / "grey"
    write_random(path, 50, 7, 1, ("npy", "beton", "tar"))
    return path


@pytest.fixture
def colour(colour_shards: Path) -> Split:
    return open_split(colour_shards)


@pytest.fixture
def own_copy(colour_shards: Path, tmp_path: Path) -> Path:
    """A copy of the colour shards that the test may damage."""
    return Path(shutil.copytree(colour_shards, tmp_path / "damaged"))
