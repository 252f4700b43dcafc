"""Writes one split atomically: arrays, then the manifest with their hashes, then one rename."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrain.data.shards import FORMAT_VERSION, MANIFEST, sha256


def write_split(
    path: Path,
    images: npt.NDArray[np.uint8],
    arrays: dict[str, npt.NDArray[Any]],
    source: dict[str, Any],
) -> None:
    """images uint8 [N, H, W, C]; arrays by name, N rows each; source goes into the manifest as it is."""
    work = path.with_name(path.name + ".incomplete")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name, array in {"images": images, **arrays}.items():
        if len(array) != len(images):
            raise ValueError(f"{name} has {len(array)} rows for {len(images)} images")
        np.save(work / f"{name}.npy", array)
    files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(work.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "count": len(images), "source": source, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    os.replace(work, path)
