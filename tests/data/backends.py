"""The loaders that the tests run over, each skipped where its extra is not installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

# backend options → the extra they need
BACKENDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "resident": ({"name": "resident"}, None),
    "mapped": ({"name": "resident", "memory_map": True}, None),
    "ffcv": ({"name": "ffcv"}, "ffcv"),
    "dali": ({"name": "dali"}, "nvidia.dali"),
    "dali-tar": ({"name": "dali", "source": "tar"}, "nvidia.dali"),
}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def needs(package: str | None) -> Any:
    return pytest.mark.skipif(package is not None and not _installed(package), reason=f"{package} not installed")


def backends(*names: str) -> Any:
    """Parametrises a test by `options`, once per named backend that is installed."""
    chosen = names or tuple(BACKENDS)
    return pytest.mark.parametrize(
        "options", [pytest.param(BACKENDS[n][0], id=n, marks=needs(BACKENDS[n][1])) for n in chosen]
    )
