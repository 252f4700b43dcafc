"""Conditions of an AAE with a learned prior: where s comes from in each mode, and who sees it (paper 002)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from dtrain.data.batch import Batch
from dtrain.models.base import DataFacts
from dtrain.noise import Noise

ModeName = Literal["plain", "supervised", "unsupervised", "text"]
Condition = Callable[[Noise, Tensor | None, int, str], Tensor]
"""s from (noise, labels or embeddings of these rows, its width, the name of the draw): [B, width]."""


def nothing(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """[B, 0]."""
    return noise.position.new_zeros(len(noise.position), 0, dtype=noise.dtype)


def drawn(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """One-hot rows, each category with the same probability."""
    return F.one_hot((noise.uniform(name) * width).long().clamp_max(width - 1), width).to(noise.dtype)


def category(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """One-hot rows of the labels given, or drawn where none are."""
    return drawn(noise, None, width, name) if given is None else F.one_hot(given, width).to(noise.dtype)


def embedding(noise: Noise, given: Tensor | None, width: int, name: str) -> Tensor:
    """The embeddings given."""
    assert given is not None
    return given


@dataclass(frozen=True)
class Mode:
    """Where the condition s comes from, and who sees it beside the code generator.

    of: what of the data. width: of s, given the facts of the data and model.categories. own: s of an image, in the
    AAE phase and for samples. prior: s in the prior improvement phase, "drawn afresh from p(s)".
    """

    of: Literal["labels", "embeddings"] | None
    width: Callable[[DataFacts, int], int | None]
    own: Condition
    prior: Condition
    code_critic: bool = False
    image_critic: bool = False
    information: bool = False


MODES: dict[ModeName, Mode] = {
    "plain": Mode(None, lambda data, k: 0, nothing, nothing),
    # Fig. 4
    "supervised": Mode("labels", lambda data, k: data.classes, category, drawn, code_critic=True, information=True),
    # Fig. 5
    "unsupervised": Mode(None, lambda data, k: k, category, drawn, information=True),
    # Section V: the critic of images sees pairs, each of an image and its own sentence.
    "text": Mode(
        "embeddings", lambda data, k: data.embedding, embedding, embedding, code_critic=True, image_critic=True
    ),
}


@dataclass(frozen=True)
class Conditions:
    """A mode with the width of its s."""

    mode: Mode
    width: int

    def own(self, batch: Batch) -> Tensor:
        """s of the AAE phase: of the images themselves, if they have one."""
        return self.mode.own(batch.noise, self._given(batch), self.width, "s1")

    def afresh(self, batch: Batch) -> Tensor:
        """s of the prior improvement phase."""
        return self.mode.prior(batch.noise, self._given(batch), self.width, "s2")

    def of_samples(self, noise: Noise, given: Tensor | None) -> Tensor:
        """s of images that are made for labels, categories or embeddings, or for drawn ones."""
        return self.mode.own(noise, given, self.width, "s")

    def _given(self, batch: Batch) -> Tensor | None:
        """What the data says of the images."""
        return {None: None, "labels": batch.labels, "embeddings": batch.embeddings}[self.mode.of]


def conditions(name: ModeName, data: DataFacts, categories: int) -> Conditions:
    """Those of a mode on the data. ValueError where the data has none."""
    mode = MODES[name]
    width = mode.width(data, categories)
    if width is None:
        how = "; prepare it with --embed or --embeddings" if mode.of == "embeddings" else ""
        raise ValueError(f"model.mode needs {mode.of}, which the data does not have{how}")
    return Conditions(mode, width)
