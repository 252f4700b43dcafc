"""Images of a sentence, and of the same sentence in every colour (002, Fig. 14 and 15)."""

from __future__ import annotations

import textwrap

import torch
from torch import Tensor

from dtrain.data.sentences import embed
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.pages import Figures, pixels, plt, show, tile
from dtrain.hues import COLOURS, PLACE, with_colours


def of_sentence(evaluation: Evaluation) -> Figures:
    """Samples conditioned on evaluate.text, unless it leaves {colour} open; and with each colour in its place."""
    text = evaluation.settings.text
    if text is None:
        return {}
    coloured = with_colours(text)
    vectors = _embedded(evaluation, [text, *coloured])
    figures = {} if PLACE in text else {"text": _samples(evaluation, text, vectors[0])}
    return figures | ({"text_colours": _sweep(evaluation, text, vectors[1:])} if coloured else {})


def _embedded(evaluation: Evaluation, sentences: list[str]) -> Tensor:
    """float32 [N, E]: rank 0 reads the sentences."""
    world = evaluation.site.world
    vectors = world.share(embed(sentences) if world.main else None)
    return torch.from_numpy(vectors).to(world.device)


def _samples(evaluation: Evaluation, text: str, vector: Tensor) -> plt.Figure:
    """evaluate.samples images from every prior. vector: [E]."""
    count = evaluation.settings.samples
    noise = evaluation.noise(count)
    priors = evaluation.algorithm.priors(vector.expand(count, -1))
    pages = [
        (f"prior: {name}", tile(pixels(evaluation, evaluation.algorithm.decode(prior(noise))), round(count**0.5)))
        for name, prior in priors.items()
    ]
    return show(pages, _title(text))


def _sweep(evaluation: Evaluation, text: str, vectors: Tensor) -> plt.Figure:
    """A row for each of evaluate.rows noises, a column for each colour; a block for each prior. vectors: [W, E]."""
    rows = evaluation.settings.rows
    noise, algorithm = evaluation.noise(rows), evaluation.algorithm
    drawn = [(word, algorithm.priors(v.expand(rows, -1))) for word, v in zip(COLOURS, vectors, strict=True)]
    blocks = [
        (word, tile(pixels(evaluation, algorithm.decode(priors[name](noise))), 1))
        for name in drawn[0][1]
        for word, priors in drawn
    ]
    return show(blocks, _title(text), columns=len(COLOURS))


def _title(text: str) -> str:
    """In lines; a dollar is a dollar, no formula."""
    return textwrap.fill(text, 70).replace("$", r"\$")
