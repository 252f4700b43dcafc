"""Colour words: the dominant hue of an image's centre, and the colour words of a sentence."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = ("pink", "red", "yellow", "orange", "purple", "blue", "white", "green", "black")
"""As the colour-word sweep shows them, in its order (002, Fig. 15)."""
PLACE = "{colour}"  # in a sentence: any of them

_HUES = {
    "orange": 15,
    "yellow": 45,
    "green": 70,
    "blue": 165,
    "purple": 250,
    "pink": 300,
    "red": 345,
}  # from, degrees
_BACKGROUND = ("green", "black")  # leaves and shadows
_LEAST = 0.1  # share of the centre that a flower of another colour takes at least
_WORDS = re.compile(rf"(?<![\w-])(?:{'|'.join(COLOURS)})(?![\w-])", re.IGNORECASE)


def dominant(images: npt.NDArray[np.uint8]) -> list[str]:
    """The colour word of each image: uint8 [N, H, W, 3] -> N of COLOURS.

    Every pixel of the central square of half the side votes, by its hue, saturation and value (0 to 1): for black
    where its value is below 0.2; where it is pale, its saturation below 0.15, or 0.3 for hues of 15 to 165 degrees,
    for white if its value is above 0.6 and for nothing else; for pink where it is a light red, no channel below 0.3;
    and else for the word of its hue, but brown, the orange and yellow of a value below 0.5, for nothing. The word
    with most votes wins; green and black, the colours of leaves and shadows, only where no other one has a tenth of
    the pixels.
    """
    height, width = images.shape[1:3]
    top, left = height // 4, width // 4
    words = _words(images[:, top : height - top, left : width - left])
    shares = np.stack([(words == i).mean(axis=(1, 2)) for i in range(len(COLOURS))], axis=1)
    behind = [COLOURS.index(word) for word in _BACKGROUND]
    petals = shares.copy()
    petals[:, behind] = 0
    chosen = np.where(petals.max(axis=1) >= _LEAST, petals.argmax(axis=1), shares.argmax(axis=1))
    return [COLOURS[i] for i in chosen]


def _words(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The number of each pixel's colour word, or -1 for a grey that is none: uint8 [..., 3] -> int64 [...]."""
    rgb = pixels.astype(np.float32) / 255
    value, low = rgb.max(axis=-1), rgb.min(axis=-1)
    spread = value - low
    saturation = spread / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, np.maximum(spread, 1e-6))
    names, starts = list(_HUES), list(_HUES.values())
    numbers = np.array([COLOURS.index(names[i]) for i in range(-1, len(names))])
    words = numbers[np.searchsorted(starts, hue, side="right")]
    pale = saturation < np.where((hue >= 15) & (hue < 165), 0.3, 0.15)
    words[(words == COLOURS.index("red")) & (low > 0.3)] = COLOURS.index("pink")
    words[(hue >= 15) & (hue < 70) & (value < 0.5)] = -1
    words[pale] = -1
    words[pale & (value > 0.6)] = COLOURS.index("white")
    words[value < 0.2] = COLOURS.index("black")
    return words


def _hue(rgb: npt.NDArray[Any], value: npt.NDArray[Any], spread: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The angle of HSV in degrees, 0 to 360."""
    r, g, b = (rgb[..., i] for i in range(3))
    sextant = np.where(value == r, (g - b) / spread, np.where(value == g, 2 + (b - r) / spread, 4 + (r - g) / spread))
    return (60 * sextant) % 360


def colour_word(sentence: str) -> str | None:
    """The colour word of a sentence that has one, however often; None where it has none, or several.

    Parts of words do not count: neither black-eyed nor reddish.
    """
    found = {word.lower() for word in _WORDS.findall(sentence)}
    return found.pop() if len(found) == 1 else None


def with_colours(sentence: str) -> list[str]:
    """The sentence with each of COLOURS in place of {colour}, or else of its first colour word; [] without one."""
    if PLACE in sentence:
        return [sentence.replace(PLACE, word) for word in COLOURS]
    if not _WORDS.search(sentence):
        return []
    return [_WORDS.sub(word, sentence, count=1) for word in COLOURS]
