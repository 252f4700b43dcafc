"""How often the dominant hue of a sample is the colour word of the caption that it is conditioned on."""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.heldout import Sums
from dtrain.hues import COLOURS, colour_word, dominant
from dtrain.noise import Noise


def words_asked_for(evaluation: Evaluation) -> Tensor | None:
    """int64 [N]: the number in COLOURS of the only colour word of each held-out image's first caption, else -1.

    None where samples are not conditioned on embeddings or have no colour, or where no such caption has one word.
    """
    split = evaluation.heldout.split
    if evaluation.algorithm.condition != "embeddings" or split.image_shape[0] != 3:
        return None
    words = [colour_word(lines[0] if lines else "") for lines in split.captions() or ()]
    if not any(words):
        return None
    return torch.tensor([-1 if word is None else COLOURS.index(word) for word in words])


def hue_match(evaluation: Evaluation) -> dict[str, float]:
    """Of one sample for each held-out caption with a single colour word, and of the images themselves (data).

    hue_match/…: the share whose dominant hue is this word; hue_chance/…: what it would be if the images were dealt to
    the captions at random. The same on every rank.
    """
    words = words_asked_for(evaluation)
    if words is None:
        return {}
    sums = Sums()
    for batch in evaluation.heldout.once():
        evaluation.site.poll()
        assert batch.index is not None
        noise, asked = Noise(evaluation.settings.seed, batch.index), words[batch.index.cpu()]
        sums.add("data", _table(evaluation, asked, batch.x))
        for name, prior in evaluation.priors(noise).items():
            sums.add(name, _table(evaluation, asked, evaluation.algorithm.decode(prior(noise))))
    values: dict[str, float] = {}
    for name, table in sums.reduce(evaluation.site.world).items():
        count = table.sum()
        values[f"hue_match/{name}"] = float(table.trace() / count)
        values[f"hue_chance/{name}"] = float(table.sum(0) @ table.sum(1) / count**2)
    return values


def _table(evaluation: Evaluation, asked: Tensor, x: Tensor) -> Tensor:
    """float64 [word asked for, word seen]: how many of the images, [B, 3, H, W]."""
    images = evaluation.to_bytes(x).permute(0, 2, 3, 1).cpu().numpy()
    seen = torch.tensor([COLOURS.index(word) for word in dominant(images)], dtype=torch.int64)
    known = asked >= 0
    pairs = asked[known] * len(COLOURS) + seen[known]
    return torch.bincount(pairs, minlength=len(COLOURS) ** 2).view(len(COLOURS), -1).double()
