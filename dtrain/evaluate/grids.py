"""Pictures of conditional priors (paper 002, Fig. 10 to 13): samples by noise and condition, codes by t-SNE."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.pages import Figures, coloured, pixels, plt, show, tile
from dtrain.models.learned_prior_aae import LearnedPriorAAE

COLUMNS, CHUNK = 20, 128  # conditions at most; codes made at a time


def _categories(evaluation: Evaluation) -> int:
    """How many categories samples can be asked for; 0 where the condition is none, or no category."""
    algorithm = evaluation.algorithm
    if isinstance(algorithm, LearnedPriorAAE) and algorithm.condition != "embeddings":
        return algorithm.conditions.width
    return 0


def grid(evaluation: Evaluation) -> Figures:
    """A row for each noise, a column for each label or category."""
    rows, columns = evaluation.settings.rows, min(_categories(evaluation), COLUMNS)
    if not columns:
        return {}
    noise = evaluation.noise(rows)
    repeated = replace(noise, position=noise.position.repeat_interleave(columns))
    given = torch.arange(columns, device=noise.position.device).repeat(rows)
    pages = [
        (f"prior: {name}", tile(pixels(evaluation, evaluation.algorithm.decode(prior(repeated))), columns))
        for name, prior in evaluation.algorithm.priors(given).items()
    ]
    return {"grid": show(pages, "Every row one noise, every column one label or category")}


def neighbours(evaluation: Evaluation) -> Figures:
    """Codes of held-out images by label and codes from the prior by label or category, in one t-SNE."""
    algorithm, count = evaluation.algorithm, evaluation.settings.points
    if not isinstance(algorithm, LearnedPriorAAE):
        return {}
    x, labels = (None if t is None else t[:count] for t in evaluation.first)
    assert x is not None
    noise, categories = evaluation.noise(len(x)), _categories(evaluation)
    given = noise.position % categories if categories else evaluation.condition(noise.position)
    (prior,) = algorithm.priors(given).values()
    codes = torch.cat([*(algorithm.encode(rows) for rows in x.split(CHUNK)), prior(noise)])
    if not evaluation.site.world.main:
        return {}
    found, learned = _tsne(codes, evaluation.settings.seed).chunk(2)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharex=True, sharey=True)
    axes[0].scatter(*found.T, s=4, **coloured(labels))
    axes[0].set_title("encoder: held-out images by label", fontsize=9)
    axes[1].scatter(*learned.T, s=4, **coloured(given if categories else None))
    axes[1].set_title("prior by label or category", fontsize=9)
    figure.suptitle("Codes by t-SNE, both sets in one")
    return {"tsne": figure}


def _tsne(codes: Tensor, seed: int) -> Tensor:
    """[N, d] -> [N, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(codes) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes.double().cpu().numpy())
    return torch.from_numpy(found)
