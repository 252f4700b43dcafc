"""Samples beside the training images nearest to them: what is new, and what is learned by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.pages import Figures, pixels, show, tile
from dtrain.world import gather


def nearest(evaluation: Evaluation) -> Figures:
    """A row of samples of every prior, and of held-out images, over the training images nearest to them."""
    rows = evaluation.settings.rows
    noise = evaluation.noise(rows)
    asked = {
        f"prior: {k}": evaluation.algorithm.decode(prior(noise)) for k, prior in evaluation.priors(noise).items()
    }
    asked["held-out data"] = evaluation.first[0][:rows]
    distances, found = closest(evaluation, torch.cat([*asked.values()]))
    pages, begin = [], 0
    for name, images in asked.items():
        part = slice(begin, begin + len(images))
        page = tile(pixels(evaluation, torch.cat([images, found[part]])), len(images))
        pages.append((f"{name}; difference {', '.join(f'{d:.2f}' for d in distances[part])}", page))
        begin += len(images)
    return {
        "nearest": show(pages, "Below each image the nearest training image (root mean squared difference in [0, 1])")
    }


def closest(evaluation: Evaluation, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the training images, unflipped, the nearest to each: differences [N] and images [N, C, H, W]."""
    flat = evaluation.unit(images).flatten(1)
    best, found = torch.full_like(flat[:, 0], torch.inf), images.clone()
    for batch in evaluation.site.train.once():
        evaluation.site.poll()
        distance, index = torch.cdist(flat, evaluation.unit(batch.x).flatten(1)).min(1)
        nearer = distance < best
        best, found = best.where(~nearer, distance), torch.where(nearer[:, None, None, None], batch.x[index], found)
    per_rank = gather(best).view(-1, len(best))
    rank, at = per_rank.argmin(0), torch.arange(len(best), device=best.device)
    chosen = gather(found).view(len(per_rank), *found.shape)[rank, at]
    return per_rank.amin(0) / flat.shape[1] ** 0.5, chosen
