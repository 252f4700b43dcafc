"""The picture: for each row of the table what it makes of the same held-out images, and of the same noise."""

from __future__ import annotations

import numpy as np

from dtrain.compare.runs import Row
from dtrain.config import ConfigError, HeldOut
from dtrain.distributed import evaluating
from dtrain.evaluate.evaluator import Evaluator
from dtrain.evaluate.pages import Pixels, pixels, tile
from dtrain.evaluate.pictures import sampled
from dtrain.evaluate.stored import restore
from dtrain.trainer import Trainer

Page = tuple[str, Pixels]


def strip(row: Row, trainer: Trainer, evaluator: Evaluator, split: HeldOut) -> tuple[Page, Page]:
    """The held-out images; and of the row's first run their reconstructions, over samples of each generative model.

    ConfigError where the weights are not those that were evaluated.
    """
    run, algorithm = row.first, trainer.algorithm
    if not algorithm.levels:
        raise ConfigError(f"the samples of {run.model} are no images: --table-only")
    restore(trainer, finished=True)
    if trainer.step != run.step:
        raise ConfigError(
            f"the last evaluation is of step {run.step}, the weights are of step {trainer.step}: "
            f"python -m dtrain.evaluate {run.folder} evaluate.split={split}"
        )
    evaluation = evaluator.on(split)
    with evaluating(algorithm, trainer.updater, trainer.world):
        x = evaluation.first[0][: evaluation.settings.rows]
        name, reconstruction = next(iter(algorithm.reconstructions(x).items()))
        samples = sampled(evaluation, len(x))
        data, found = (pixels(evaluation, images) for images in (x, reconstruction))
    below = list(samples.values()) or [np.ones_like(found)]
    caption = f"{row.label}: {run.model}, seed {run.config.seed}; reconstructions from {name}, "
    caption += f"samples from {', '.join(samples)}" if samples else "no generative model"
    return ("held-out images", tile(data, len(x))), (caption, tile(np.concatenate([found, *below]), len(x)))
