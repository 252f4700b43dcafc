"""Oxford Flowers 102: the jpg folder with setid.mat and imagelabels.mat, or class folders; captions as text_c10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.arrays import whole_numbers
from data_prep.captions import CAPTIONS, captioned, from_templates
from data_prep.files import LIMIT, Tree, described, find, locate_tree
from data_prep.folder import TreeReader, class_folders
from data_prep.mat import load_mat
from data_prep.source import Source, SourceError

SETS = {"train": "trnid", "valid": "valid", "test": "tstid"}
CLASSES = 102
DEFAULT_SIZE = 64


def _official(source: Path, size: int) -> dict[str, Source]:
    """jpg/image_00001.jpg …, split and labelled by the two .mat files; label 1 becomes 0."""
    tree, set_file, label_file = Tree(source / "jpg"), find(source, "setid.mat"), find(source, "imagelabels.mat")
    found = load_mat(label_file, LIMIT, "labels")["labels"]
    labels = whole_numbers(found, 1, CLASSES, f"{label_file}: the labels") - 1
    if len(labels) != len(tree.members):
        raise SourceError(
            f"{label_file} has {len(labels)} labels for {len(tree.members)} images in {tree.path}: unpack it again"
        )
    sets = _sets(set_file, len(labels))
    about = {
        "files": {**tree.describe(), **described(set_file, label_file)},
        "crop": "centre square",
        "resize": f"PIL bicubic to {size}",
        "class_names": [str(c) for c in range(1, CLASSES + 1)],
    }
    result = {}
    for split, numbers in sets.items():
        names = [f"image_{n:05d}.jpg" for n in numbers]
        absent = set(names) - set(tree.members)
        if absent:
            raise SourceError(f"{tree.path} lacks {min(absent)}, which {set_file} lists: unpack it again")
        result[split] = Source(
            names, TreeReader(tree, names, size), (size, size, 3), {"labels": labels[numbers - 1]}, about
        )
    return result


def _sets(file: Path, count: int) -> dict[str, npt.NDArray[np.int64]]:
    """The image numbers of each split, sorted; each of 1..count at most once."""
    content = load_mat(file, LIMIT, *SETS.values())
    sets = {s: np.sort(whole_numbers(content[v], 1, count, f"{file}: the numbers {v}")) for s, v in SETS.items()}
    numbers, times = np.unique(np.concatenate(list(sets.values())), return_counts=True)
    if (times > 1).any():
        raise SourceError(f"{file} lists image {numbers[times > 1][0]} more than once: download it again")
    return sets


def described_in_words(splits: dict[str, Source]) -> dict[str, Source]:
    """The splits as they are where they have captions; else with templates of class and hue in their place."""
    if any(part.captions is not None for part in splits.values()):
        return splits
    return {split: from_templates(part, _names(part)) for split, part in splits.items()}


def _names(source: Source) -> list[str]:
    """What the classes are called: their official names where they are numbers, else the folders' own."""
    if "labels" not in source.arrays:
        raise SourceError(f"--embed needs {CAPTIONS}, or class folders whose names it can put into sentences")
    from torchvision.datasets import Flowers102

    known = {str(number): name.rstrip("?") for number, name in enumerate(Flowers102.classes, start=1)}
    return [known.get(name, name) for name in source.about["class_names"]]


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """Centre square, resized to size (64)."""
    side = size or DEFAULT_SIZE
    official = (source / "jpg").is_dir()
    result = (
        _official(source, side) if official else class_folders(locate_tree(source, beside=f"{CAPTIONS}.zip"), side)
    )
    return captioned(result, source)
