"""MATLAB files of version 4 to 7, as SVHN and Flowers 102 come in."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.files import TooLargeError, ordinary
from data_prep.source import SourceError

_HEADER = 128
_COMPRESSED = 15
_PIECE = 1 << 13  # unfolds to at most 9 MB


def _check_size(file: Path, limit: int) -> None:
    """TooLargeError if the compressed elements unfold to more than `limit` bytes: scipy reads them whole."""
    total = 0
    with file.open("rb") as f:
        head = f.read(_HEADER)
        order = {b"IM": "<u4", b"MI": ">u4"}.get(head[126:128])
        if order is None:  # version 4 does not compress
            return
        while len(tag := f.read(8)) == 8:
            kind, left = np.frombuffer(tag, dtype=order).tolist()
            if kind != _COMPRESSED:
                f.seek(left, 1)
                continue
            inflater = zlib.decompressobj()
            while piece := f.read(min(left, _PIECE)):
                left -= len(piece)
                total += len(inflater.decompress(piece))
                if total > limit:
                    raise TooLargeError(limit)


def load_mat(file: Path, limit: int, *variables: str) -> Mapping[str, npt.NDArray[Any]]:
    """The named variables, `limit` bytes at most. SourceError if the file is cut, damaged or lacks one."""
    from scipy.io import loadmat

    ordinary(file)
    try:
        _check_size(file, limit)
        content: Mapping[str, Any] = loadmat(file, variable_names=variables)
    except NotImplementedError as e:
        raise SourceError(f"{file} is a v7.3 (HDF5) file: save it again with -v7 in MATLAB") from e
    except Exception as e:  # scipy's reader raises a dozen types on damaged files
        raise SourceError(f"{file} cannot be read ({type(e).__name__}: {e}): download it again") from e
    for variable in variables:
        if variable not in content:
            raise SourceError(f"{file} has no variable {variable}: is it the original file?")
        if not isinstance(content[variable], np.ndarray) or not content[variable].size:
            raise SourceError(f"{file}: the variable {variable} is empty or no array: download it again")
    return content
