"""Whether the critic of images knows the training images by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.data.build import Loader
from dtrain.evaluate.evaluation import Evaluation

IMAGES = 2000  # of either split


def critic_gap(evaluation: Evaluation) -> dict[str, float]:
    """How much more real training images look to the critic than held-out ones, of about IMAGES each.

    critic_gap/logit: mean logit of training images - mean logit of held-out ones. critic_gap/relative: that over
    mean logit of training images - mean logit of reconstructions of held-out ones: 0 where the critic treats the two
    splits alike, 1 where held-out images look like its fakes (r_v of Karras et al., 2020).
    """
    algorithm, train, heldout = evaluation.algorithm, evaluation.site.train, evaluation.heldout
    seen = _mean_logit(evaluation, train, lambda batch: batch.x)
    if seen is None:
        return {}
    new = _mean_logit(evaluation, heldout, lambda batch: batch.x)
    fake = _mean_logit(evaluation, heldout, lambda batch: algorithm.reconstruct(batch.x))
    assert new is not None and fake is not None
    relative = (seen - new) / (seen - fake) if seen != fake else math.nan
    return {"critic_gap/logit": seen - new, "critic_gap/relative": relative}


def _mean_logit(evaluation: Evaluation, loader: Loader, images: Callable[[Batch], Tensor]) -> float | None:
    """Over about IMAGES images of a split; None without a critic."""
    site, sums = evaluation.site, torch.zeros(2, dtype=torch.float64)
    for batch in islice(loader.once(), -(-IMAGES // site.batch_size)):
        site.poll()
        logits = evaluation.algorithm.critic_logits(images(batch))
        if logits is None:
            return None
        sums += torch.tensor([float(logits.double().sum()), len(logits)])
    total, count = site.world.mean(sums).tolist()
    return total / count
