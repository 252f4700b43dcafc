"""Reads a checkpoint's tensors without executing code that it brings: its table of contents is a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from dtrain.faults import CheckpointError

METADATA = ".metadata"
_TABLE = "torch.distributed.checkpoint.metadata"
# What a table of tensors is made of; torch's dtypes beside it.
ALLOWED = {
    *((_TABLE, name) for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    *((_TABLE, name) for name in ("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def _member(kind: Any, name: str) -> Any:
    """In the place of getattr, by which Python 3.11 before 3.11.4 pickles a member of an enumeration."""
    if kind is not _MEM_FORMAT_ENCODING:
        raise CheckpointError(f"it asks for {name} of {kind}, which no table of tensors needs")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) in ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise CheckpointError(f"it names {module}.{name}, which no table of tensors needs")


class Reader(FileSystemReader):
    """DCP's reader, with an unpickler that builds nothing but a table of tensors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table. Raises CheckpointError for one that is damaged, or holds anything else than tensors here."""
        file = self.folder / METADATA
        try:
            with file.open("rb") as f:
                table = _Unpickler(f).load()
            tensors = all(isinstance(v, TensorStorageMetadata) for v in table.state_dict_metadata.values())
            places = list(table.storage_data.values())
        except CheckpointError as e:
            raise CheckpointError(f"{file} is refused: {e}") from e
        except Exception as e:  # unpickling damage raises almost anything
            raise CheckpointError(f"{file} is damaged: {type(e).__name__}: {e}") from e
        plain = all(Path(p.relative_path).name == p.relative_path and not p.transform_descriptors for p in places)
        if not (tensors and plain):
            raise CheckpointError(f"{file} is refused: it holds more than tensors in its own folder")
        table.storage_meta = table.storage_meta or StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table
