"""Codes moved along an attribute: x' = G(z + s (mean z with it - mean z without it)), z = z_1 (000, Fig. 8, 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.data.shards import Split
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import Sums
from dtrain.models.base import Algorithm


def directions(evaluation: Evaluation, names: list[str]) -> dict[str, Tensor]:
    """For each attribute or class, mean z_1 with it - mean z_1 without it, over the training set in one pass.

    The same on every rank; in the shape of a code. All zero where everything, or nothing, has the attribute.
    """
    sums, train = Sums(), evaluation.site.train
    for batch in train.once():
        evaluation.site.poll()
        z = evaluation.algorithm.encode(batch.x)
        shape = z.shape[1:]
        has = torch.stack([_has(batch, name, train.split) for name in names]).double()  # [A, B]
        flat = z.flatten(1).double()
        sums.add("count", torch.tensor(float(len(z))))
        sums.add("sum", flat.sum(0))
        sums.add("count with", has.sum(1))
        sums.add("sum with", has @ flat)
    total = sums.reduce(evaluation.site.world)
    found = {}
    for i, name in enumerate(names):
        n, m = total["count with"][i], total["count"] - total["count with"][i]
        if n and m:
            difference = total["sum with"][i] / n - (total["sum"] - total["sum with"][i]) / m
        else:
            difference = torch.zeros_like(total["sum"])
        found[name] = difference.view(shape).to(z.device, z.dtype)
    return found


def _has(batch: Batch, name: str, split: Split) -> Tensor:
    """bool [B]: which rows have the attribute, or are of the class."""
    if name in split.attribute_names:
        assert batch.attributes is not None  # the manifest names attributes only beside the array
        return batch.attributes[:, split.attribute_names.index(name)] == 1
    assert batch.labels is not None
    return batch.labels == split.class_names.index(name)


def moved(algorithm: Algorithm, z: Tensor, direction: Tensor, strengths: list[float]) -> Tensor:
    """Codes [B, ...] decoded at every strength: [B * S, C, H, W], a code's images side by side."""
    images = [algorithm.decode(z + s * direction) for s in strengths]
    return torch.stack(images, dim=1).flatten(0, 1)
