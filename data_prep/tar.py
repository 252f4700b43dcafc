"""Writes images.tar, a WebDataset: per sample a PNG and a JSON file with what travels with it."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.source import Pixels


def _png(row: Pixels) -> bytes:
    """Lossless, so that whoever decodes it has exactly the row of images.npy; level 1 decodes fastest."""
    stream = io.BytesIO()
    Image.fromarray(row.squeeze(2) if row.shape[2] == 1 else row).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_tar(file: Path, images: Pixels, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Members 00000000.png and 00000000.json …, and <file>.index.npy: start, bytes and crc32 of each PNG."""
    index = np.empty((len(images), 3), dtype=np.int64)
    side = {name: a for name, a in arrays.items() if name in ("labels", "attributes")}
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample, row in enumerate(images):
            encoded = _png(row)
            info = tarfile.TarInfo(f"{sample:08d}.png")  # time, owner and mode stay at their fixed defaults
            info.size = len(encoded)
            tar.addfile(info, io.BytesIO(encoded))
            padded = -(-len(encoded) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            index[sample] = tar.offset - padded, len(encoded), zlib.crc32(encoded)
            about = json.dumps({name: a[sample].tolist() for name, a in side.items()}).encode()
            info = tarfile.TarInfo(f"{sample:08d}.json")
            info.size = len(about)
            tar.addfile(info, io.BytesIO(about))
    np.save(file.with_name(f"{file.name}.index.npy"), index)
