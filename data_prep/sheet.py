"""A contact sheet of prepared images, to look at by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dtrain.data.shards import open_split

ROWS, COLUMNS = 10, 16
_SHORTEST = 48  # pixels: smaller images are enlarged by a whole factor


def write_sheet(split: Path, file: Path) -> tuple[int, int]:
    """Evenly spaced samples of a split as one PNG, ten rows of sixteen. Returns how many, of how many."""
    images = open_split(split).images
    picked = np.linspace(0, len(images) - 1, ROWS * COLUMNS).astype(np.int64)
    tiles = images[picked]
    factor = -(-_SHORTEST // tiles.shape[1])
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, width, channels = tiles.shape
    grid = tiles.reshape(ROWS, COLUMNS, height, width, channels).swapaxes(1, 2)
    sheet = grid.reshape(ROWS * height, COLUMNS * width, channels)
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(file)
    return len(np.unique(picked)), len(images)
