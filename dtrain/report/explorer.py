"""What a trained model makes of its codes, decoded beforehand: a sheet of images for each control of the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dtrain.data.shards import Split
from dtrain.trained import CHUNK, Trained

SIDE = 17  # steps of the plane along each axis
PATHS, STEPS = 6, 13  # pairs of held-out images, and images on the line between their codes
POINTS = 500  # held-out codes shown on the plane
IMAGES = 1024  # held-out images whose codes say where an attribute leads
ATTRIBUTES, MOVED = 12, 3  # attributes, and held-out images moved along each
STRENGTHS = tuple(s / 4 for s in range(-6, 7))  # in differences between the means with and without

Control = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Held-out images [N, C, H, W] uint8, their labels [N] or [], class names, and bool [N] of attributes by name."""

    x: Tensor
    labels: list[int]
    classes: list[str]
    attributes: dict[str, Tensor]

    @classmethod
    def of(cls, split: Split) -> HeldOut:
        """Images of the split, always the same, of all that it holds: it may be sorted."""
        rows = np.random.default_rng(0).permutation(len(split))[:IMAGES]
        x = torch.from_numpy(split.images[rows]).permute(0, 3, 1, 2)
        labels, marks = split.arrays.get("labels"), split.arrays.get("attributes")
        found = {} if marks is None else {n: marks[rows, i] == 1 for i, n in enumerate(split.attribute_names)}
        attributes = {name: torch.from_numpy(has) for name, has in found.items()}
        return cls(x, [] if labels is None else labels[rows].tolist(), split.class_names, attributes)


def controls(trained: Trained, heldout: HeldOut | None) -> list[Control]:
    """A plane where the deepest code has two dimensions, else paths; strengths of attributes where there are any.

    heldout: None where the data is not at hand; then there is only the plane, of a model that knows its own.
    """
    found = [_plane(trained, heldout)]
    if heldout is not None:
        if found[0] is None and len(heldout.x) > 1:
            found.append(_paths(trained, heldout))
        found.append(_strengths(trained, heldout))
    return [control for control in found if control is not None]


def _plane(trained: Trained, heldout: HeldOut | None) -> Control | None:
    """The model's own square of codes, else one of two standard deviations around the held-out codes."""
    level = trained.levels
    z = _codes(trained, heldout.x[:POINTS], level) if heldout is not None else None
    codes = trained.algorithm.grid(SIDE)
    if codes is None and z is not None and z[0].numel() == 2:
        low, high = (z.flatten(1).mean(0) + s * z.flatten(1).std(0, correction=0) for s in (-2, 2))
        across, up = (torch.linspace(float(low[i]), float(high[i]), SIDE) for i in (0, 1))
        codes = torch.stack(torch.meshgrid(up.flip(0), across, indexing="ij")[::-1], -1).reshape(-1, *z.shape[1:])
    if codes is None:
        return None
    flat = codes.flatten(1).cpu()
    points = [] if z is None else z.flatten(1).cpu().tolist()
    return {
        "kind": "plane", "title": f"z_{level}: move over the plane", "side": SIDE,
        "low": flat[-SIDE].tolist(), "high": flat[SIDE - 1].tolist(),  # bottom left, top right
        "points": [[round(v, 4) for v in p] for p in points],
        "labels": heldout.labels[: len(points)] if heldout else [], "classes": heldout.classes if heldout else [],
        **_sheet(_decoded(trained, codes, level), SIDE),
    }  # fmt: skip


def _paths(trained: Trained, heldout: HeldOut) -> Control:
    count, level = min(PATHS, len(heldout.x) // 2), trained.levels
    x = heldout.x[: 2 * count]
    start, end = _codes(trained, x, level).chunk(2)
    line = torch.stack([torch.lerp(start, end, t) for t in torch.linspace(0, 1, STEPS).to(start)], 1)
    return {
        "kind": "slider", "title": f"z_{level}: on the line between the codes of two held-out images",
        "rows": [f"images {i} and {count + i}" for i in range(count)],
        "values": [round(t / (STEPS - 1), 3) for t in range(STEPS)], "begin": 0,
        **_sheet(_decoded(trained, line.flatten(0, 1), level), STEPS),
    }  # fmt: skip


def _strengths(trained: Trained, heldout: HeldOut) -> Control | None:
    """z_1 + s (mean z_1 with the attribute - mean z_1 without it): those nearest to half of the images."""
    wanted = trained.config.evaluate.manipulate
    names = [n for n, has in heldout.attributes.items() if 0 < has.sum() < len(has) and (not wanted or n in wanted)]
    names = sorted(names, key=lambda n: abs(float(heldout.attributes[n].double().mean()) - 0.5))[:ATTRIBUTES]
    if not names:
        return None
    z, rows, moved = _codes(trained, heldout.x, 1), [], []
    for name in names:
        has = heldout.attributes[name]
        direction = z[has].mean(0) - z[~has].mean(0)
        for i in range(min(MOVED, len(z))):
            rows.append(f"{name}, image {i}")
            moved += [z[i] + s * direction for s in STRENGTHS]
    return {
        "kind": "slider", "title": "z_1: along an attribute, by strength", "rows": rows, "values": STRENGTHS,
        "begin": STRENGTHS.index(0), **_sheet(_decoded(trained, torch.stack(moved), 1), len(STRENGTHS)),
    }  # fmt: skip


def _codes(trained: Trained, x: Tensor, level: int) -> Tensor:
    return torch.cat([trained.encode(part, level).cpu() for part in x.split(CHUNK)])


def _decoded(trained: Trained, codes: Tensor, level: int) -> Tensor:
    return torch.cat([trained.decode(part, level).cpu() for part in codes.split(CHUNK)])


def _sheet(images: Tensor, columns: int) -> Control:
    """[rows * columns, C, H, W] in [0, 1] as one PNG; width and height are of one image."""
    count, channels, height, width = images.shape
    tiles = (images * 255).round().to(torch.uint8).view(count // columns, columns, channels, height, width)
    pixels = tiles.permute(0, 3, 1, 4, 2).reshape(count // columns * height, columns * width, channels).numpy()
    data = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(data, "png", optimize=True)
    return {"sheet": png(data.getvalue()), "width": width, "height": height, "columns": columns}


def png(data: bytes) -> str:
    """A PNG file as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
