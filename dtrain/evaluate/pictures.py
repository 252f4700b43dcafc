"""Pictures of a run: samples, reconstructions per level, paths and grids of codes, codes by label, curves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.evaluate.curves import curves
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.grids import grid, neighbours
from dtrain.evaluate.manipulation import directions, moved
from dtrain.evaluate.nearest import nearest
from dtrain.evaluate.pages import Figures, Pixels, coloured, legend, pixels, plt, show, tile
from dtrain.evaluate.potentials import matched, surface
from dtrain.evaluate.text import of_sentence

Points = npt.NDArray[np.float64]
CHUNK = 128  # images encoded at a time


def samples(evaluation: Evaluation) -> Figures:
    """From every prior."""
    count = evaluation.settings.samples
    pages = [(f"prior: {k}", tile(images, round(count**0.5))) for k, images in sampled(evaluation, count).items()]
    return {"samples": show(pages, f"{count} samples from the model")} if pages else {}


def learned(evaluation: Evaluation) -> Figures:
    """Images that are weights of the algorithm, the first ones."""
    images = evaluation.algorithm.learned_images()
    if images is None:
        return {}
    shown = images[: evaluation.settings.samples]
    page = tile(pixels(evaluation, shown), round(len(shown) ** 0.5))
    return {"learned_images": show([("", page)], f"{len(shown)} of {len(images)} images that the model has learned")}


def sampled(evaluation: Evaluation, count: int) -> dict[str, Pixels]:
    """The first images of every prior by its name, each [count, H, W, C]."""
    noise = evaluation.noise(count)
    drawn = {k: evaluation.algorithm.decode(prior(noise)) for k, prior in evaluation.priors(noise).items()}
    return {k: pixels(evaluation, images) for k, images in drawn.items()}


def reconstructions(evaluation: Evaluation) -> Figures:
    """Of held-out data, the deepest first, and the data."""
    x = evaluation.first[0][: evaluation.settings.rows]
    rows = {"data": x, **evaluation.algorithm.reconstructions(x)}
    pages = [(name, tile(pixels(evaluation, r), len(x))) for name, r in reversed(rows.items())]
    return {"reconstructions": show(pages, "Reconstructions of held-out data")}


def manipulations(evaluation: Evaluation) -> Figures:
    """Held-out images, and samples of every generative model, moved along each attribute that was asked for."""
    names, strengths, rows = evaluation.settings.manipulate, evaluation.settings.strengths, evaluation.settings.rows
    found = directions(evaluation, names) if names else {}
    noise = evaluation.noise(rows)
    figures = {}
    for name, direction in found.items():
        codes = {"held-out data": evaluation.algorithm.encode(evaluation.first[0][:rows])}
        codes |= {f"samples, {prior}": draw(noise) for prior, draw in evaluation.priors(noise).items()}
        pages = [
            (kind, tile(pixels(evaluation, moved(evaluation.algorithm, z, direction, strengths)), len(strengths)))
            for kind, z in codes.items()
        ]
        title = f"{name}: from left to right, strength " + ", ".join(f"{s:g}" for s in strengths)
        figures[f"manipulation_{name}"] = show(pages, title, columns=len(pages))
    return figures


def interpolation(evaluation: Evaluation) -> Figures:
    """The decoded square of the deepest codes, where the algorithm has one."""
    side, algorithm = evaluation.settings.grid, evaluation.algorithm
    codes = algorithm.grid(side)
    if codes is None:
        return {}
    images = algorithm.decode(codes.to(evaluation.site.world.device), algorithm.levels)
    caption = "horizontal: first coordinate, vertical: second, both from -2 to 2 standard deviations of the prior"
    pages = [(caption, tile(pixels(evaluation, images), side))]
    return {"interpolation": show(pages, f"Interpolation over z_{algorithm.levels}")}


def paths(evaluation: Evaluation, steps: int = 8) -> Figures:
    """Straight paths between the codes of pairs of data points, at the first and at the deepest level."""
    x, algorithm = evaluation.first[0][: evaluation.settings.rows], evaluation.algorithm
    count = len(x) // 2
    if not count:
        return {}
    a, b = x[:count], x[count : 2 * count]
    pages = []
    for level in sorted({1, algorithm.levels}):
        start, end = (algorithm.encode(anchor, level) for anchor in (a, b))
        between = [algorithm.decode(torch.lerp(start, end, t), level) for t in torch.linspace(0, 1, steps)]
        columns = torch.stack([a, *between, b], dim=1).flatten(0, 1)
        pages.append((f"in z_{level}", tile(pixels(evaluation, columns), steps + 2)))
    title = "Between data points (left and right): decoded from the line between their codes"
    return {"paths": show(pages, title)}


def between_samples(evaluation: Evaluation, steps: int = 10) -> Figures:
    """Straight paths between the codes of pairs of samples (003, Fig. 5)."""
    count, algorithm = evaluation.settings.rows, evaluation.algorithm
    noise = evaluation.noise(2 * count)
    pages = []
    for name, prior in evaluation.priors(noise).items():
        start, end = prior(noise).chunk(2)
        between = [algorithm.decode(torch.lerp(start, end, t)) for t in torch.linspace(0, 1, steps)]
        pages.append((f"prior: {name}", tile(pixels(evaluation, torch.stack(between, 1).flatten(0, 1)), steps)))
    title = "Between samples (left and right): decoded from the line between codes"
    return {"between_samples": show(pages, title)} if pages else {}


def latents(evaluation: Evaluation) -> Figures:
    """Codes of held-out data at every level, by label."""
    settings, algorithm = evaluation.settings, evaluation.algorithm
    x, labels = (None if t is None else t[: settings.points] for t in evaluation.first)
    assert x is not None
    colours = coloured(labels)
    figure, axes = plt.subplots(1, algorithm.levels, figsize=(3.2 * algorithm.levels, 3.6), squeeze=False)
    parts = [[z.flatten(1).double().cpu() for z, _ in algorithm.posteriors(part)] for part in x.split(CHUNK)]
    for level, (ax, codes) in enumerate(zip(axes[0], zip(*parts, strict=True), strict=True), start=1):
        z = torch.cat(codes)
        dims = z.shape[1]
        points = (_umap if settings.projection == "umap" else _principal)(z) if dims > 2 else z.numpy()
        dots = ax.scatter(points[:, 0], points[:, -1], s=4, **colours)
        ax.set_title(
            f"z_{level}: {dims} dimensions" + (f", {settings.projection.upper()}" if dims > 2 else ""), fontsize=9
        )
    if colours:
        legend(figure, dots, evaluation.heldout.split.class_names)
    figure.suptitle("Codes (means) of held-out data at every level")
    return {"latents": figure}


def _principal(z: Tensor) -> Points:
    """The two leading principal components of the rows: [N, d] -> [N, 2]."""
    centred = z - z.mean(0)
    if z.shape[1] > len(z):  # the Gram matrix is the smaller one, and an SVD takes minutes
        variances, directions = torch.linalg.eigh(centred @ centred.T)
        points = directions * variances.clamp_min(0).sqrt()
    else:
        points = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors
    return points[:, [-1, -2]].numpy()


def _umap(z: Tensor) -> Points:
    """UMAP's two dimensions of the rows: [N, d] -> [N, 2], the same on every call."""
    from umap import UMAP

    return UMAP(random_state=0, n_jobs=1).fit_transform(z.numpy())


Pictures = tuple[Callable[[Evaluation], Figures], ...]
OF_IMAGES: Pictures = (
    samples,
    nearest,
    learned,
    reconstructions,
    interpolation,
    paths,
    between_samples,
    latents,
    manipulations,
    matched,
    of_sentence,
    grid,
    neighbours,
)
"""Each returns figures by file name; all ranks call all of them."""
OF_RUNS: Pictures = (curves, surface)
"""Those that also a run has whose samples are no images."""
