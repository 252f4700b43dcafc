"""Good originals and the splits made from them, which no refusal may touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.__main__ import main
from tests.data_prep.refusing import GOOD, options


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """name → a folder with good originals in `in`, and the splits made from them in `out`; made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            GOOD[name](made[name] / "in")
            assert main(options(name, made[name] / "in", made[name] / "out")) == 0
        return made[name]

    yield make
