"""How well a potential carries noise to codes (paper 003): the numbers of its map."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dtrain.data.problems import CENTRES, Mixture
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.mixture import fit
from dtrain.losses.ot import half_squared_distances, transport
from dtrain.models.base import Algorithm
from dtrain.models.potential import PotentialModel
from dtrain.noise import Noise
from dtrain.world import gather

NEW_POINTS = 10_000  # mapped to the eight Gaussians


def wasserstein(x: Tensor, y: Tensor) -> float:
    """The 2-Wasserstein distance between two equally large sets of points [n, d], exactly."""
    cost = half_squared_distances(x, y)
    return float(np.sqrt(2 * cost[np.arange(len(cost)), transport(cost).match].mean()))


def names(algorithm: Algorithm) -> set[str]:
    """The metrics that a potential can be judged by."""
    if not isinstance(algorithm, PotentialModel):
        return set()
    return {"w2/mapped", *(() if algorithm.levels else ("within3", "modes"))}


def transport_numbers(evaluation: Evaluation) -> dict[str, float]:
    """Of an algorithm with a potential, once there are codes to train it on; scaled as the potential sees them.

    w2/…: 2-Wasserstein distance to half of the held-out codes, of mapped noise; of as many draws from N(0, I), from a
    Gaussian and a mixture of Gaussians fitted to the training codes; of the other half of the held-out codes (floor).
    transport_cost/…: mean 1/2 |x - T(x)|^2 of the map, and of the exact plan to held-out codes.
    nearest/…: median distance to the nearest training code.
    """
    algorithm, site = evaluation.algorithm, evaluation.site
    if not isinstance(algorithm, PotentialModel) or not codes_exist(evaluation, algorithm):
        return {}
    codes, heldout = algorithm.codes(site), _held_out(evaluation, algorithm)
    noise = evaluation.noise(NEW_POINTS).normal("transport", algorithm.dim)
    mapped = (noise + algorithm.potential(noise)[1]).cpu()
    values = _eight(mapped) if not algorithm.levels else {}
    values |= _marginal(evaluation, algorithm, codes)
    numbers: dict[str, float] = {}
    if site.world.main:  # one process is enough, and only its threads are free
        numbers = _distances(evaluation, codes, heldout, noise.cpu(), mapped)
    return values | site.world.share(numbers)


def codes_exist(evaluation: Evaluation, algorithm: PotentialModel) -> bool:
    """Whether the potential's stage has begun. To be called on every rank."""
    folder = evaluation.site.folder / "latents"
    return not algorithm.levels or evaluation.site.world.share(folder.exists() and any(folder.glob("*.npy")))


def _held_out(evaluation: Evaluation, algorithm: PotentialModel) -> Tensor:
    """Codes that the potential was not trained on, scaled: [n, d] on the CPU, the same on every rank."""
    wanted = 2 * evaluation.settings.transport_points
    if not algorithm.levels:
        return torch.from_numpy(Mixture(wanted, evaluation.settings.seed + 1, True)(0)[1])
    rows = []
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        order = gather(batch.noise.position).argsort()
        rows.append(gather(algorithm.encode(batch.x))[order].cpu() / algorithm.scale.cpu())
        if sum(map(len, rows)) >= wanted:
            break
    return torch.cat(rows)[:wanted]


def _distances(
    evaluation: Evaluation, codes: Tensor, heldout: Tensor, noise: Tensor, mapped: Tensor
) -> dict[str, float]:
    count, seed = min(len(heldout) // 2, len(noise)), evaluation.settings.seed
    half, other = heldout[:count], heldout[count : 2 * count]
    centre, covariance = codes.mean(0), torch.cov(codes.T)
    others = {
        "mapped": mapped[:count],
        "floor": other,
        "normal": noise[:count],
        "gaussian": centre + noise[:count] @ torch.linalg.cholesky(covariance).T,
        "mixture": fit(codes, seed).draw(Noise.of(count, seed)),
    }
    values = {}
    for name, points in others.items():
        values[f"w2/{name}"] = wasserstein(points, half)
    plan = half_squared_distances(noise[:count], half)
    values["transport_cost/mapped"] = float((noise - mapped).square().sum(1).mean() / 2)
    values["transport_cost/exact"] = float(plan[np.arange(count), transport(plan).match].mean())
    for name, points in (("mapped", mapped[:count]), ("held_out", half)):
        nearest = torch.cat([torch.cdist(rows, codes).amin(1) for rows in points.split(256)])
        values[f"nearest/{name}"] = float(nearest.median())
    return values


def _eight(mapped: Tensor) -> dict[str, float]:
    """within3: the share of points within 3 sigma of a centre. modes: how many have at least 1 % of the points.

    mode_share/…: of the points, of the mode that has the least, and the most.
    """
    distance, mode = torch.cdist(mapped.double(), torch.from_numpy(CENTRES)).min(1)
    share = mode.bincount(minlength=len(CENTRES)) / len(mode)
    return {
        "within3": float((distance <= 3).double().mean()),
        "modes": float((share >= 0.01).sum()),
        "mode_share/least": float(share.min()),
        "mode_share/most": float(share.max()),
    }


def _marginal(evaluation: Evaluation, algorithm: PotentialModel, codes: Tensor) -> dict[str, float]:
    """marginal_error/…: total variation between the codes' shares of 10 N noises and 1 / N; by chance (floor)."""
    if algorithm.dual != "semidiscrete":
        return {}
    site, count, world = evaluation.site, len(codes), evaluation.site.world
    targets, total = codes.to(world.device), 10 * count
    share = torch.zeros(count, dtype=torch.float64)
    rows, start = 4096 * world.size, 0
    while start < total:
        site.poll()
        own = min(rows, total - start)
        noise = Noise.of(own, evaluation.settings.seed + 1, start, world.device)[world.rank :: world.size]
        _, index = algorithm.weights(noise.normal("marginal", algorithm.dim), targets)
        share += index.cpu().bincount(minlength=count)
        start += own
    share = world.mean(share) * world.size / total
    chance = np.random.default_rng(0).multinomial(total, np.full(count, 1 / count)) / total
    return {
        "marginal_error/dual": float((share - 1 / count).abs().sum() / 2),
        "marginal_error/floor": float(np.abs(chance - 1 / count).sum() / 2),
    }
