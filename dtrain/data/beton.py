"""Preflight of .beton files: FFCV trusts every pointer in them, and a wrong one is a crash or a wrong image."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dtrain.data.shards import AGAIN, ShardError, Split


def tables_digest(file: Path, data_start: int, data_end: int) -> str:
    """sha256 of all that is not image data: header, field descriptions, sample table, allocation table."""
    with file.open("rb") as f:
        head = f.read(data_start)
        f.seek(data_end)
        return hashlib.sha256(head + f.read()).hexdigest()


def checked_beton(split: Split, encoding: str) -> Path:
    """raw.beton or jpg.beton of a split once its size and all its pointers are as written; ShardError otherwise."""
    name = f"{encoding}.beton"
    file = split.file(name, "beton" if encoding == "raw" else "jpg")
    tables = split.manifest["files"][name]["tables"]
    if tables_digest(file, *tables["data"]) != tables["sha256"]:
        raise ShardError(f"{file} is damaged: its header or tables are not as prepared; {AGAIN}")
    return file
