"""Pictures of a potential: its surface over the plane, and where its map sends noise (paper 003)."""

from __future__ import annotations

import torch

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.pages import Figures, pixels, plt, show, tile
from dtrain.evaluate.transport import codes_exist
from dtrain.models.potential import PotentialModel

REACH = 15.0  # of the plane that is drawn, in both directions from the origin
SIDE = 121


def surface(evaluation: Evaluation) -> Figures:
    """D over the plane with noise, its targets and mapped noise, where codes are points (Fig. 2)."""
    algorithm, site = evaluation.algorithm, evaluation.site
    if not isinstance(algorithm, PotentialModel) or algorithm.levels:
        return {}
    axis = torch.linspace(-REACH, REACH, SIDE)
    plane = torch.cartesian_prod(axis, axis).to(site.world.device)
    noise = evaluation.noise(algorithm.problem_size).normal("surface", algorithm.dim)
    heights = algorithm.potential(plane)[0].view(SIDE, SIDE).T.cpu()
    sets = {
        "target": (algorithm.codes(site), "tab:green"),
        "noise": (noise, "tab:blue"),
        "mapped noise": (algorithm.transported(noise), "tab:red"),
    }
    figure, ax = plt.subplots(figsize=(7, 6))
    filled = ax.contourf(axis, axis, heights, levels=40, cmap="Greys")
    figure.colorbar(filled, label="D")
    for name, (points, colour) in sets.items():
        across, up = points.cpu().T
        ax.scatter(across, up, s=7, c=colour, label=name)
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", title="Potential, and noise that it maps")
    ax.legend(loc="upper right")
    return {"surface": figure}


def matched(evaluation: Evaluation) -> Figures:
    """Mapped noise beside the training codes nearest to it; and beside those that the semidiscrete map gives it.

    That map has no other outputs than training codes: its samples are reconstructions of training images.
    """
    algorithm, site = evaluation.algorithm, evaluation.site
    if not isinstance(algorithm, PotentialModel) or not codes_exist(evaluation, algorithm):
        return {}
    codes = algorithm.codes(site).to(site.world.device)
    noise = evaluation.noise(evaluation.settings.rows).normal("prior", algorithm.dim)
    mapped = algorithm.transported(noise)
    rows = {"mapped noise": mapped, "the nearest training codes": codes[torch.cdist(mapped, codes).argmin(1)]}
    if algorithm.dual == "semidiscrete":
        rows["the training codes of the semidiscrete map"] = codes[algorithm.weights(noise, codes)[1]]
    pages = [(k, tile(pixels(evaluation, algorithm.decode(z)), len(noise))) for k, z in rows.items()]
    return {"matched": show(pages, "Mapped noise and training codes, decoded")}
