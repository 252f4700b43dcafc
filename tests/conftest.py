"""Shards that every test of a whole run reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 + 20 random labelled images of 6x6."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder
