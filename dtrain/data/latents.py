"""What one stage makes for the next: the codes of the whole training set, in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dtrain.world import gather

if TYPE_CHECKING:
    from dtrain.models.base import Site


def latents(site: Site, encode: Callable[[Tensor], Tensor], *groups: str) -> Tensor:
    """encode(x) of every training image, unflipped, in the order of the samples: float32 [N, ...] on the CPU.

    encode uses the networks of these groups; it runs once for their weights, on all ranks together, and what it gave
    is kept under a digest of them and of the images. To be called on every rank.
    """
    key = f"{site.train.split.manifest['sha256'][:16]}-{site.digest(*groups)}"
    file = site.folder / "latents" / f"{key}.npy"
    if not site.world.share(file.exists()):
        codes = encoded(site, encode)
        if site.world.main:
            _write(codes, file)
        site.world.barrier()
    return torch.from_numpy(np.load(file))


@torch.no_grad()
def encoded(site: Site, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """encode(x) of every training image, unflipped, in the order of the samples: float32 [N, ...] on the CPU.

    All ranks encode their rows, and all get all codes.
    """
    codes: Tensor | None = None
    for batch in site.train.once():
        site.poll()
        assert batch.index is not None
        rows, index = gather(encode(batch.x).float()).cpu(), gather(batch.index).cpu()
        if codes is None:
            codes = torch.empty(len(site.train), *rows.shape[1:])
        codes[index] = rows
    assert codes is not None
    return codes


def _write(codes: Tensor, file: Path) -> None:
    work = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.open("wb") as f:
        np.save(f, codes.numpy())
        f.flush()
        os.fsync(f.fileno())
    os.replace(work, file)
