"""Any other data set: an image tree [train|valid|test/][class/]image in a folder or a zip archive."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.files import Tree, locate_tree
from data_prep.images import decode, fit
from data_prep.source import Pixels, Source, SourceError

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
HELD_OUT_EVERY = 10


@dataclass
class TreeReader:
    """Reads, crops and resizes members of a tree; sent to worker processes."""

    tree: Tree
    members: list[str]
    size: int
    channels: int = 3
    crop: int | None = None

    def __call__(self, sample: int) -> Pixels:
        return fit(decode(self.tree.read(self.members[sample]), self.channels), self.size, self.crop)


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """Splits by the top folders' names; without them every tenth image of a class is held out for testing."""
    if size is None:
        raise SourceError("data_prep folder needs --size: the side of the square images, in pixels")
    return class_folders(locate_tree(source), size)


def _placed(member: str) -> tuple[str | None, str | None]:
    """(split, class) that a member's path says."""
    parts = PurePosixPath(member).parts[:-1]
    split = SPLITS.get(parts[0]) if parts else None
    rest = parts[1:] if split else parts
    if len(rest) > 1:
        raise SourceError(f"{member} lies too deep: the layout is [train|valid|test/][class/]image")
    return split, (rest[0] if rest else None)


def class_folders(tree: Tree, size: int) -> dict[str, Source]:
    """One Source per split. Classes are numbered in numeric order where all are numbers, else alphabetically."""
    members: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, str | None] = {}
    counts: dict[str | None, int] = defaultdict(int)
    for member in tree.members:
        split, classes[member] = _placed(member)
        if split is None:
            counts[classes[member]] += 1
            split = "test" if counts[classes[member]] % HELD_OUT_EVERY == 0 else "train"
        members[split].append(member)
    names = {c for c in classes.values() if c is not None}
    if names and None in classes.values():
        loose = next(m for m, c in classes.items() if c is None)
        raise SourceError(f"{loose} lies outside the class folders: move it into one")
    ordered = sorted(names, key=lambda c: (int(c), c) if all(n.isdecimal() for n in names) else (0, c))
    about = {"files": tree.describe(), "crop": "centre square", "resize": f"PIL bicubic to {size}"}
    if ordered:
        about["class_names"] = ordered
    number = {c: i for i, c in enumerate(ordered)}
    return {
        split: Source(
            names=found,
            read=TreeReader(tree, found, size),
            shape=(size, size, 3),
            arrays={"labels": np.array([number[str(classes[m])] for m in found])} if ordered else {},
            about=about,
        )
        for split, found in members.items()
    }
