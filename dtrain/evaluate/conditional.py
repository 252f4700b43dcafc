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


def families(evaluation: Evaluation, images: str) -> tuple[str, ...]:
    """Those of classified digits: of "data", or of the samples of a prior."""
    if evaluation.settings.fidelity != "digits":
        return ()
    made_for_labels = images != "data" and evaluation.algorithm.condition == "labels"
    return ("confidence", "accuracy") if made_for_labels else ("confidence",)


def classified(evaluation: Evaluation, images: str, logits: Tensor) -> dict[str, float]:
    """Of digits at positions 0, 1, …, by the classifier's logits [N, K].

    confidence: the mean of the largest probability. accuracy: the share that is taken for the label it was made for.
    """
    found = dict.fromkeys(families(evaluation, images), float(logits.softmax(1).amax(1).double().mean()))
    if "accuracy" in found:
        labels = evaluation.condition(torch.arange(len(logits)))
        assert labels is not None
        found["accuracy"] = float((logits.argmax(1) == labels).double().mean())
    return found


def categories(evaluation: Evaluation) -> dict[str, float]:
    """purity and nmi of the categories that Q takes the held-out images for, against their labels."""
    algorithm = _finder(evaluation)
    if algorithm is None:
        return {}
    sums, classes = Sums(), int(evaluation.heldout.split.arrays["labels"].max()) + 1
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        assert batch.labels is not None
        found = F.one_hot(algorithm.assigned(batch.x), algorithm.conditions.width).double()
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
