"""What configs/data/folder.yaml takes from the shards that data.path names. Without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtrain.config import ConfigError

PREPARE = "python -m data_prep folder --source <folder of images> --size 64 --out"


def _given(path: str | None) -> Path:
    if not path:
        raise ConfigError(f"data.path: is not set; name the folder of your shards, made by: {PREPARE} shards/mine")
    return Path(path)


def name(path: str | None) -> str:
    """The last part of data.path: mine of shards/mine."""
    return os.path.basename(os.path.abspath(_given(path)))


def image_shape(path: str | None, split: str) -> list[int]:
    """[C, H, W] of the images of a split. ConfigError where it is not prepared."""
    from dtrain.data.shards import ShardError, read_manifest  # loads numpy

    folder = _given(path)
    try:
        height, width, channels = read_manifest(folder / split)["image_shape"]
    except ShardError as e:
        raise ConfigError(f"data.path={folder}: {e}\n  prepare the shards with: {PREPARE} {folder}") from e
    return [channels, height, width]


REFERENCES: dict[str, Callable[..., Any]] = {"shards_name": name, "shards_image_shape": image_shape}
"""By their names in configuration files."""
