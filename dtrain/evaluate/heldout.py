"""Held-out numbers: the objective with its terms, and how much every level is used."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dtrain.evaluate.evaluation import Evaluation
from dtrain.world import World

INACTIVE = 0.01  # a dimension whose mean varies less over the data carries nothing


class Sums:
    """Weighted sums of tensors by name, over batches and then over ranks, in float64."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, key: str, value: Tensor) -> None:
        value = value.detach().to("cpu", torch.float64)
        self.values[key] = self.values[key] + value if key in self.values else value

    def reduce(self, world: World) -> dict[str, Tensor]:
        flat = torch.cat([v.flatten() for v in self.values.values()])
        if world.size > 1:
            dist.all_reduce(flat, group=world.control)
        parts = flat.split([v.numel() for v in self.values.values()])
        return {k: part.view(v.shape) for (k, v), part in zip(self.values.items(), parts, strict=True)}


def held_out(evaluation: Evaluation) -> dict[str, float]:
    """Means over the held-out set, each sample once, the same on every rank.

    objective and objective/<term>: the algorithm's own (Eq. 14 and 17 for StackedWAE), averaged over batches by size.
    For every level i of the hierarchy:
    mse/level<i>: mean over pixels of (x - reconstruction from level i)^2, with pixels scaled to [0, 1];
    explained/level<i>: the share of x's variance that this reconstruction explains;
    inactive/level<i>: the share of its dimensions whose posterior mean has a variance <= 0.01 over the data.
    """
    algorithm, sums, terms = evaluation.algorithm, Sums(), Sums()
    levels = range(1, algorithm.levels + 1)
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        for name, term in algorithm.validate(batch).items():
            terms.add(name, term * len(batch))
        x = evaluation.unit(batch.x)
        sums.add("x", x.sum(0))
        sums.add("x^2", x.square().sum(0))
        for level, z in enumerate(algorithm.encode_levels(batch.x), start=1):
            error = evaluation.unit(algorithm.decode(z, level)) - x
            sums.add(f"error{level}", error.square().flatten(1).mean(1).sum())
            sums.add(f"z{level}", z.flatten(1).sum(0))
            sums.add(f"z{level}^2", z.flatten(1).double().square().sum(0))
        sums.add("count", torch.tensor(float(len(batch))))
    world = evaluation.site.world
    total = sums.reduce(world)
    count = total.pop("count")
    mean = {k: v / count for k, v in total.items()}

    def variance(key: str) -> Tensor:
        return (mean[f"{key}^2"] - mean[key].square()).clamp_min(0)

    values: dict[str, float] = {}
    if terms.values:
        parts = {name: float(term / count) for name, term in terms.reduce(world).items()}
        values = {"objective": sum(parts.values())} | {f"objective/{name}": v for name, v in parts.items()}
    of_x = variance("x").mean()
    for level in levels:
        mse = mean[f"error{level}"]
        values[f"mse/level{level}"] = float(mse)
        values[f"explained/level{level}"] = float(1 - mse / of_x)
        values[f"inactive/level{level}"] = float((variance(f"z{level}") <= INACTIVE).double().mean())
    return values
