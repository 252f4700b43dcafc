"""Held-out numbers: the objective with its terms, and how much every level is used."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from dtrain.data.order import positions
from dtrain.evaluate.evaluation import Evaluation
from dtrain.noise import Noise
from dtrain.world import World

INACTIVE = 0.01  # the share of a dimension's variance that comes from the data: below it, it carries nothing
ROUNDING = 1e-6  # of the second moment: what a constant seems to vary by
CHAINS, CHAIN_CHUNK, DRAWS = 128, 16, 8  # codes of the deepest level, at a time; images drawn from each


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
    For every reconstruction:
    mse/<name>: mean over pixels of its squared error, with pixels scaled to [0, 1]; mse_symmetric/<name>: to [-1, 1];
    explained/<name>: the share of x's variance that it explains.
    inactive/level<i>: the share of the level's dimensions with Var(mean) / (Var(mean) + E[variance]) <= 0.01 over the
    data, mean and variance of the posterior: it has no scale.
    """
    algorithm, sums, terms = evaluation.algorithm, Sums(), Sums()
    names: tuple[str, ...] = ()
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        for name, term in algorithm.validate(batch).items():
            terms.add(name, term * len(batch))
        x = evaluation.unit(batch.x)
        sums.add("x", x.sum(0))
        sums.add("x^2", x.square().sum(0))
        reconstructions = algorithm.reconstructions(batch.x) if algorithm.levels else {}
        names = tuple(reconstructions)
        for name, reconstruction in reconstructions.items():
            error = evaluation.unit(reconstruction) - x
            sums.add(f"error {name}", error.square().flatten(1).mean(1).sum())
        for level, (z, of_z) in enumerate(algorithm.posteriors(batch.x), start=1):
            sums.add(f"z{level}", z.flatten(1).sum(0))
            sums.add(f"z{level}^2", z.flatten(1).double().square().sum(0))
            sums.add(f"var{level}", (torch.zeros_like(z) if of_z is None else of_z).flatten(1).sum(0))
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
    for name in names:
        mse = mean[f"error {name}"]
        values[f"mse/{name}"] = float(mse)
        values[f"mse_symmetric/{name}"] = float(4 * mse)
        values[f"explained/{name}"] = float(1 - mse / of_x)
    for level in range(1, algorithm.levels + 1):
        of_mean = variance(f"z{level}")
        constant = of_mean <= ROUNDING * mean[f"z{level}^2"]
        inactive = constant | (of_mean <= INACTIVE * (of_mean + mean[f"var{level}"]))
        values[f"inactive/level{level}"] = float(inactive.double().mean())
    return values


def use_of_the_deepest(evaluation: Evaluation, chains: int = CHAINS) -> dict[str, float]:
    """generative_use/z<N>: Var_{z_N}(E[x | z_N]) / Var(x) of what the chain of decoders generates, in (0, 1).

    Both variances are sums over pixels; unbiased estimates from 8 images for each of the z_N, as many as `chains`.
    """
    algorithm, world, sums = evaluation.algorithm, evaluation.site.world, Sums()
    for begin in range(0, chains, CHAIN_CHUNK):
        evaluation.site.poll()
        count = min(CHAIN_CHUNK, chains - begin)
        at = torch.from_numpy(positions(begin, count, world.rank, world.size)).to(world.device)
        noise = Noise(
            evaluation.settings.seed, (at[:, None] * DRAWS + torch.arange(DRAWS, device=at.device)).flatten()
        )
        codes = algorithm.chain(replace(noise, position=at.repeat_interleave(DRAWS)), noise)
        if codes is None:
            return {}
        x = evaluation.unit(algorithm.decode(codes)).flatten(1).double().unflatten(0, (len(at), DRAWS))
        sums.add("within", x.var(1).sum(0))
        sums.add("mean", x.mean(1).sum(0))
        sums.add("mean^2", x.mean(1).square().sum(0))
    total = {k: v / chains for k, v in sums.reduce(world).items()}
    within = total["within"].sum()
    means = (total["mean^2"] - total["mean"].square()).sum() * chains / (chains - 1)
    between = (means - within / DRAWS).clamp_min(0)
    return {f"generative_use/z{algorithm.levels}": float(between / (between + within))}
