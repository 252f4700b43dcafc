"""From a loader's name and options to the loader: the only place that knows them all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from dtrain.data.batch import Batch
from dtrain.data.shards import Split
from dtrain.data.stream import Spec

# name → (module, class, package that the extra of the same name installs)
LOADERS = {
    "resident": ("dtrain.data.resident", "ResidentLoader", None),
    "ffcv": ("dtrain.data.ffcv", "FfcvLoader", "ffcv"),
    "dali": ("dtrain.data.dali", "DaliLoader", "nvidia.dali"),
}


class Loader(Protocol):
    """A split as batches on the device, the same for every backend. lossy: pixels are not those of images.npy."""

    split: Split
    lossy: bool

    def __len__(self) -> int:
        """Samples in the split."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Endless batches from a global position, batch_size / world rows each."""

    def once(self) -> Iterator[Batch]:
        """Each sample exactly once over all ranks, in near-equal global batches."""

    def close(self) -> None:
        """Stops the threads and frees the memory of iterators still open."""


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def loader_class(name: str) -> Any:
    """Raises ValueError for an unknown name, ImportError when the backend's extra is not installed."""
    if name not in LOADERS:
        raise ValueError(f"no loader is called {name!r}: choose one of {', '.join(LOADERS)}")
    module, cls, package = LOADERS[name]
    if package and not _installed(package):
        raise ImportError(
            f"loader={name} needs the package {package}, which is not installed: run pip install '.[{name}]' in "
            "the project's root (docs/data.md lists the system packages it needs), or use loader=resident"
        )
    return getattr(import_module(module), cls)


def build_loader(
    name: str,
    split: Split,
    *,
    batch_size: int,
    value_range: tuple[float, float],
    seed: int = 0,
    flip: bool = False,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Loader:
    """The loader `name` over a split; batch_size is global; options are the backend's own (see its class).

    Raises ValueError for an unknown name or option, ImportError when the backend's extra is not installed,
    and ShardError when the split lacks the file that the backend reads.
    """
    threads = torch.get_num_threads()  # FFCV sets its own count for the whole process, even on import
    cls = loader_class(name)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"loader={name} has no option {', '.join(unknown)}: it takes {', '.join(known)}")
    spec = Spec(batch_size, value_range, seed, flip, rank, world, device)
    loader: Loader = cls(split, spec, **options)
    torch.set_num_threads(threads)
    return loader
