"""Held-out numbers: the objective with its terms, and the reconstruction error from every level."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from dtrain.data.build import Loader
from dtrain.distributed import World
from dtrain.models.base import Algorithm


def held_out(algorithm: Algorithm, test: Loader, world: World, poll: Callable[[], None]) -> dict[str, float]:
    """Means over the held-out set, each sample once, the same on every rank.

    objective and objective/<term>: the algorithm's own (Eq. 14 for StackedWAE), averaged over batches by size.
    mse/level<i>: mean over pixels of (x - reconstruction from level i)^2, with pixels scaled to [0, 1].
    """
    low, high = algorithm.value_range
    sums: dict[str, torch.Tensor] = {}

    def add(key: str, value: torch.Tensor, weight: int) -> None:
        sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.double().cpu() * weight

    count = torch.zeros((), dtype=torch.float64)
    for batch in test.once():
        poll()
        for name, term in algorithm.validate(batch).items():
            add(f"objective/{name}", term, len(batch))
        for level in range(1, algorithm.levels + 1):
            error = algorithm.reconstruct(batch.x, level) - batch.x
            add(f"mse/level{level}", (error / (high - low)).square().mean(), len(batch))
        count += len(batch)
    total = torch.stack([*sums.values(), count])
    if world.size > 1:
        dist.all_reduce(total, group=world.control)
    values = dict(zip(sums, (total[:-1] / total[-1]).tolist(), strict=True))
    terms = [v for k, v in values.items() if k.startswith("objective/")]
    return {"objective": sum(terms), **values} if terms else values
