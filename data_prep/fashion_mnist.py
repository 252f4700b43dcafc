"""Fashion-MNIST: MNIST's four files with other contents."""

from __future__ import annotations

from pathlib import Path

from data_prep import mnist
from data_prep.source import Source


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """28 × 28, or resized to size."""
    return mnist.splits(source, size, mnist.FASHION)
