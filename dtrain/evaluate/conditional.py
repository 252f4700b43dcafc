"""How well conditions and samples go together (paper 002): accuracy given a label, and what categories mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import Sums
from dtrain.models.learned_prior_aae import LearnedPriorAAE


def names(evaluation: Evaluation) -> set[str]:
    """The metrics of categories that there will be."""
    return {"purity", "nmi"} if _finder(evaluation) else set()


def judges_labels(evaluation: Evaluation) -> bool:
    """Whether samples have labels that the extractor's logits can be held against."""
    return evaluation.algorithm.condition == "labels" and evaluation.settings.fidelity == "digits"


def accuracy(evaluation: Evaluation, logits: Tensor) -> float:
    """The share of samples, at positions 0, 1, …, that are classified as the label they were made for: [N, K]."""
    labels = evaluation.condition(torch.arange(len(logits)))
    assert labels is not None
    return float((logits.argmax(1) == labels).double().mean())


def categories(evaluation: Evaluation) -> dict[str, float]:
    """purity and nmi of the categories that Q takes the held-out images for, against their labels."""
    algorithm = _finder(evaluation)
    if algorithm is None:
        return {}
    sums, classes = Sums(), int(evaluation.heldout.split.arrays["labels"].max()) + 1
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        assert batch.labels is not None
        found = F.one_hot(algorithm.assigned(batch.x), algorithm.condition_dim).double()
        sums.add("table", found.T @ F.one_hot(batch.labels, classes).double())
    table = sums.reduce(evaluation.site.world)["table"]
    return {"purity": purity(table), "nmi": mutual_information(table)}


def _finder(evaluation: Evaluation) -> LearnedPriorAAE | None:
    """The algorithm, if it finds categories by itself, on images that have labels too."""
    algorithm = evaluation.algorithm
    if isinstance(algorithm, LearnedPriorAAE) and algorithm.informed and algorithm.condition is None:
        return algorithm if "labels" in evaluation.heldout.split.arrays else None
    return None


def purity(table: Tensor) -> float:
    """The share of images that have the commonest label of their category: counts [categories, labels]."""
    return float(table.amax(1).sum() / table.sum())


def mutual_information(table: Tensor) -> float:
    """I(category; label) over the mean of the two entropies, 0 where both are 0: counts [categories, labels]."""
    joint = table / table.sum()
    entropies = [torch.special.entr(p).sum() for p in (joint.sum(0), joint.sum(1), joint)]
    mean = (entropies[0] + entropies[1]) / 2
    return float((entropies[0] + entropies[1] - entropies[2]) / mean) if mean > 0 else 0.0
