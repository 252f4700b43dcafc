"""Pictures of a run: samples, reconstructions per level, interpolations, the latents by label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.config import EvaluateConfig
from dtrain.data.build import Loader
from dtrain.evaluate.manipulation import moved
from dtrain.models.base import Algorithm
from dtrain.noise import Noise
from dtrain.world import World, gather

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Pixels = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
CHUNK = 128  # images encoded at a time


def draw(
    algorithm: Algorithm,
    test: Loader,
    world: World,
    settings: EvaluateConfig,
    directions: dict[str, Tensor],
    folder: Path,
    poll: Callable[[], None],
) -> None:
    """Writes every picture that suits the algorithm. All ranks compute (sharded networks need it), rank 0 draws.

    directions: of z_1 by attribute, see dtrain.evaluate.manipulation.
    """
    x, labels = _first(test, max(settings.rows, settings.points), world)
    poll()
    made = {
        "samples.png": _samples(algorithm, settings, x.device),
        "reconstructions.png": _reconstructions(algorithm, x[: settings.rows]),
        "interpolation.png": _interpolation(algorithm, settings.grid, x[:2]),
        "paths.png": _paths(algorithm, x[: settings.rows]),
        "latents.png": _latents(algorithm, x[: settings.points], labels, settings.projection),
    }
    for name, direction in directions.items():
        made[f"manipulation_{name}.png"] = _manipulation(algorithm, settings, x, name, direction)
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            if figure is not None:
                figure.savefig(folder / name, dpi=110, bbox_inches="tight")
    plt.close("all")


def _first(test: Loader, count: int, world: World) -> tuple[Tensor, Tensor | None]:
    """The first held-out images, the same rows on every rank, and their labels."""
    xs: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in test.once():
        order = gather(batch.noise.position).argsort()
        xs.append(gather(batch.x)[order])
        if batch.labels is not None:
            labels.append(gather(batch.labels)[order])
        if sum(map(len, xs)) >= count:
            break
    return torch.cat(xs)[:count], torch.cat(labels)[:count] if labels else None


def _pixels(algorithm: Algorithm, x: Tensor) -> Pixels:
    """[B, C, H, W] in the value range -> [B, H, W, C] in [0, 1]."""
    low, high = algorithm.value_range
    return ((x - low) / (high - low)).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def tile(images: Pixels, columns: int, gap: int = 1) -> Pixels:
    """[N, H, W, C] -> one image of rows of `columns`, white gaps between."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    page = np.ones((rows * (h + gap) + gap, columns * (w + gap) + gap, c), dtype=np.float32)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        page[top : top + h, left : left + w] = image
    return page


def show(pages: list[tuple[str, Pixels]], title: str, width: float = 7.0, columns: int = 1) -> plt.Figure:
    """One figure of tiled pages with their captions, in rows of `columns`."""
    rows = [pages[i : i + columns] for i in range(0, len(pages), columns)]
    heights = [width / columns * max(p.shape[0] / p.shape[1] for _, p in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width, sum(heights) + 0.35 * len(rows) + 0.5), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for ax, (caption, page) in zip(axes.flat, pages, strict=False):
        ax.imshow(page.squeeze(-1) if page.shape[2] == 1 else page, cmap="gray", vmin=0, vmax=1)
        ax.set_title(caption, fontsize=9, loc="left")
    for ax in axes.flat:
        ax.axis("off")
    figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    return figure


def _samples(algorithm: Algorithm, settings: EvaluateConfig, device: torch.device) -> plt.Figure:
    columns, count = round(settings.samples**0.5), settings.samples
    noise = Noise.of(count, settings.seed, device=device)
    pages = [
        (name and f"prior: {name}", tile(_pixels(algorithm, algorithm.decode(codes(noise))), columns))
        for name, codes in algorithm.generators().items()
    ]
    return show(pages, f"{count} samples from the model")


def _reconstructions(algorithm: Algorithm, x: Tensor) -> plt.Figure:
    rows = [*algorithm.reconstructions(x).items(), ("data", x)]
    pages = [(name, tile(_pixels(algorithm, r), len(x))) for name, r in rows]
    return show(pages, "Reconstructions of held-out data")


def _manipulation(
    algorithm: Algorithm, settings: EvaluateConfig, x: Tensor, name: str, direction: Tensor
) -> plt.Figure:
    """Held-out images, and samples of every generative model, moved along one attribute."""
    rows, strengths = settings.rows, settings.strengths
    noise = Noise.of(rows, settings.seed, device=x.device)
    codes = {"held-out data": algorithm.encode(x[:rows])}
    codes |= {f"samples {prior}".strip(): draw(noise) for prior, draw in algorithm.generators().items()}
    pages = [
        (kind, tile(_pixels(algorithm, moved(algorithm, z, direction, strengths)), len(strengths)))
        for kind, z in codes.items()
    ]
    columns = ", ".join(f"{s:g}" for s in strengths)
    return show(pages, f"{name}: from left to right, strength {columns}", columns=len(pages))


def _interpolation(algorithm: Algorithm, side: int, x: Tensor) -> plt.Figure | None:
    """The decoded square of 2 standard deviations of the prior on the deepest latent, where it has two dimensions."""
    if algorithm.encode(x, algorithm.levels).shape[1:] != (2,):
        return None
    line = algorithm.prior_scale * torch.linspace(-2, 2, side, device=x.device, dtype=x.dtype)
    grid = torch.stack(torch.meshgrid(-line, line, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    page = tile(_pixels(algorithm, algorithm.decode(grid, algorithm.levels)), side)
    caption = "horizontal: first coordinate, vertical: second, both from -2 to 2 standard deviations of the prior"
    return show([(caption, page)], f"Interpolation over z_{algorithm.levels}")


def _paths(algorithm: Algorithm, x: Tensor, steps: int = 8) -> plt.Figure | None:
    """Straight paths between the codes of pairs of data points, with the pairs and their reconstructions."""
    pairs = len(x) // 2
    if not pairs:
        return None
    a, b = x[:pairs], x[pairs : 2 * pairs]
    level = algorithm.interpolated or algorithm.levels
    start, end = (algorithm.encode(anchor, level) for anchor in (a, b))
    between = [algorithm.decode(torch.lerp(start, end, t), level) for t in torch.linspace(0, 1, steps)]
    columns = torch.stack([a, *between, b], dim=1).flatten(0, 1)
    caption = f"left and right: data; between: decoded from {steps} points of the line between their codes"
    page = tile(_pixels(algorithm, columns), steps + 2)
    return show([(caption, page)], f"Interpolation between data points in z_{level}")


def _latents(algorithm: Algorithm, x: Tensor, labels: Tensor | None, projection: str) -> plt.Figure:
    coloured, classes = {}, 0
    if labels is not None:
        classes = max(10, int(labels.max()) + 1)
        colours = "tab10" if classes == 10 else "nipy_spectral"
        coloured = {"c": labels.cpu().numpy(), "cmap": colours, "vmin": -0.5, "vmax": classes - 0.5}
    figure, axes = plt.subplots(1, algorithm.levels, figsize=(3.2 * algorithm.levels, 3.6), squeeze=False)
    parts = [[z.flatten(1).double().cpu() for z in algorithm.encode_levels(part)] for part in x.split(CHUNK)]
    for level, (ax, codes) in enumerate(zip(axes[0], zip(*parts, strict=True), strict=True), start=1):
        z = torch.cat(codes)
        dims = z.shape[1]
        project = _umap if projection == "umap" else _principal
        points = project(z) if dims > 2 else z.numpy()
        dots = ax.scatter(points[:, 0], points[:, -1], s=4, **coloured)
        ax.set_title(f"z_{level}: {dims} dimensions" + (f", {projection.upper()}" if dims > 2 else ""), fontsize=9)
    if classes:
        figure.colorbar(
            dots, ax=axes, ticks=range(0, classes, max(1, classes // 10)), label="label", fraction=0.02, pad=0.01
        )
    figure.suptitle("Codes (means) of held-out data at every level")
    return figure


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
