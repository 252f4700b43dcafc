"""Images on pages of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from torch import Tensor

from dtrain.evaluate.evaluation import Evaluation

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import PathCollection

MOST_NAMES = 20  # of classes in a legend
Pixels = npt.NDArray[np.float32]
Figures = dict[str, plt.Figure]


def pixels(evaluation: Evaluation, x: Tensor) -> Pixels:
    """[B, C, H, W] in the value range -> [B, H, W, C] in [0, 1]."""
    return evaluation.unit(x).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


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
    height = sum(heights) + 0.35 * len(rows) + 0.5
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width, height), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for ax, (caption, page) in zip(axes.flat, pages, strict=False):
        ax.imshow(page.squeeze(-1) if page.shape[2] == 1 else page, cmap="gray", vmin=0, vmax=1)
        ax.set_title(caption, fontsize=9, loc="left", parse_math=False)  # a name may hold $
    for ax in axes.flat:
        ax.axis("off")
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height))
    return figure


def coloured(labels: Tensor | None) -> dict[str, Any]:
    """How a scatter shows points by label; no colours without labels."""
    if labels is None:
        return {}
    classes = max(10, int(labels.max()) + 1)
    colours = "tab10" if classes == 10 else "nipy_spectral"
    return {"c": labels.cpu().numpy(), "cmap": colours, "vmin": -0.5, "vmax": classes - 0.5}


def legend(figure: plt.Figure, dots: PathCollection, names: Sequence[str]) -> None:
    """What the colours of a scatter mean: the classes by name, or a bar of labels where they are nameless or many."""
    shown = np.unique(np.asarray(dots.get_array()))
    if names and len(shown) <= MOST_NAMES:
        handles, _ = dots.legend_elements(num=list(shown))
        beside = figure.axes[-1].legend(
            handles, [names[int(label)] for label in shown], loc="upper left", bbox_to_anchor=(1.02, 1),
            frameon=False, fontsize=8,
        )  # fmt: skip
        for text in beside.get_texts():
            text.set_parse_math(False)  # a name may hold $
        return
    _, highest = dots.get_clim()
    classes = int(highest + 0.5)
    ticks = range(0, classes, max(1, classes // 10))
    bar = figure.colorbar(dots, ax=figure.axes, ticks=ticks, label="label", fraction=0.02, pad=0.01)
    if names:
        bar.ax.set_yticklabels([names[i] if i < len(names) else "" for i in ticks], parse_math=False)


def close() -> None:
    """Frees the figures."""
    plt.close("all")
