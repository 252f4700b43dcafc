"""Writes .beton files (FFCV format 2) from images.npy: raw rows, or JPEG.

FFCV's own writer spreads samples over worker processes, so its bytes depend on their timing, and a killed run
leaves workers and shared memory behind. The format is a header, a table and pages: written here in order.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.source import Pixels
from dtrain.data.beton import tables_digest

JPEG_QUALITY = 95
_PAGE = 1 << 23
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")],
    align=True,
)
_FIELD = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("bytes", "<u8")])
_RAW_ROW = np.dtype([("f0", "<u8")], align=True)
_JPG_ROW = np.dtype(
    [("f0", np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")]))], align=True
)
_ARRAY_TYPE, _IMAGE_TYPE = 4, 2  # FFCV's NDArrayField and RGBImageField


def _field(kind: int, arguments: bytes) -> npt.NDArray[Any]:
    field = np.zeros(1, dtype=_FIELD)
    field["type"] = kind
    for key, text in (("name", b"image"), ("arguments", arguments)):
        field[key][0, : len(text)] = np.frombuffer(text, dtype=np.uint8)
    return field


def _array_arguments(shape: tuple[int, ...]) -> bytes:
    """NDArrayField: 32 dimensions, then numpy's description of uint8 rows."""
    dimensions = np.zeros(32, dtype="<u8")
    dimensions[: len(shape)] = shape
    kind = json.dumps([["", "|u1"]]).encode()
    return dimensions.tobytes() + np.array([len(kind)], dtype="<u8").tobytes() + kind


def _place(sizes: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.uint64]:
    """Where each sample goes: one after the other, none across a page's end."""
    pointers, at = np.empty(len(sizes), dtype=np.uint64), start
    for sample, size in enumerate(sizes.tolist()):
        if at % _PAGE + size > _PAGE:
            at += -at % _PAGE
        pointers[sample], at = at, at + size
    return pointers


def _write(
    file: Path, field: npt.NDArray[Any], rows: npt.NDArray[Any], sizes: npt.NDArray[np.int64], data: Iterable[Any]
) -> dict[str, Any]:
    """Header, tables and data; `rows` is the sample table, whose pointers are set here. Returns the manifest's
    entry about the tables."""
    start = _HEADER.itemsize + field.nbytes + rows.nbytes
    start += -start % _PAGE
    pointers = _place(sizes, start)
    (rows["f0"]["pointer"] if rows.dtype == _JPG_ROW else rows["f0"])[:] = pointers
    end = int(pointers[-1] + np.uint64(sizes[-1]))
    end += -end % _PAGE
    allocations = np.empty(len(sizes), dtype=_ALLOCATION)
    allocations["sample"], allocations["pointer"], allocations["bytes"] = np.arange(len(sizes)), pointers, sizes
    header = np.array((2, 1, _PAGE, len(sizes), end), dtype=_HEADER)
    with file.open("wb") as f:
        f.write(header.tobytes() + field.tobytes() + rows.tobytes())
        for pointer, sample in zip(pointers.tolist(), data, strict=True):
            _pad(f, pointer)
            f.write(sample)
        _pad(f, end)
        f.write(allocations.tobytes())
    return {"data": [start, end], "sha256": tables_digest(file, start, end)}


def _pad(f: BinaryIO, position: int) -> None:
    f.write(bytes(position - f.tell()))


def write_raw(file: Path, images: Pixels) -> dict[str, Any]:
    """images uint8 [N, H, W, C] as fixed-size arrays."""
    sizes = np.full(len(images), images[0].nbytes, dtype=np.int64)
    rows = np.zeros(len(images), dtype=_RAW_ROW)
    return _write(file, _field(_ARRAY_TYPE, _array_arguments(images.shape[1:])), rows, sizes, _rows(images))


def _rows(images: Pixels) -> Iterator[bytes]:
    for row in images:
        yield row.tobytes()


def jpeg(row: Pixels) -> bytes:
    """One sample as JPEG without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(row).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def write_jpg(file: Path, images: Pixels) -> dict[str, Any]:
    """images uint8 [N, H, W, 3] as JPEG, and <file>.index.npy: start, bytes and crc32 of each."""
    _, height, width, channels = images.shape
    if channels != 3:
        raise ValueError(f"format jpg holds colour images, these have {channels} channel: leave it out")
    spool = file.with_suffix(".spool")
    sizes, checks = np.empty(len(images), dtype=np.int64), np.empty(len(images), dtype=np.int64)
    with spool.open("wb") as f:
        for sample, row in enumerate(images):
            encoded = jpeg(row)
            sizes[sample], checks[sample] = len(encoded), zlib.crc32(encoded)
            f.write(encoded)
    rows = np.zeros(len(images), dtype=_JPG_ROW)
    rows["f0"]["width"], rows["f0"]["height"] = width, height
    with spool.open("rb") as f:
        tables = _write(file, _field(_IMAGE_TYPE, b""), rows, sizes, (f.read(n) for n in sizes.tolist()))
    spool.unlink()
    index = np.stack([rows["f0"]["pointer"].astype(np.int64), sizes, checks], axis=1)
    np.save(file.with_name(f"{file.name}.index.npy"), index)
    return tables
