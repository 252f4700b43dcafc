"""Oxford Flowers 102: the jpg folder with setid.mat and imagelabels.mat, or class folders; captions as text_c10.

text_c10 is Reed et al.'s layout: text_c10/class_00001/image_06734.txt, one caption per line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.arrays import whole_numbers
from data_prep.files import LIMIT, Tree, described, described_folder, files_below, find, locate_tree, read_text
from data_prep.folder import TreeReader, class_folders
from data_prep.mat import load_mat
from data_prep.source import Source, SourceError

SETS = {"train": "trnid", "valid": "valid", "test": "tstid"}
CLASSES = 102
CAPTIONS = "text_c10"
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


def with_captions(source: Source, texts: dict[str, Path], digest: dict[str, Any]) -> Source:
    """The source with the lines of each image's text file; an image without any is broken."""
    captions, broken = [], dict(source.broken)
    for i, name in enumerate(source.names):
        stem, lines = PurePosixPath(name).stem, []
        try:
            lines = _lines(texts[stem]) if stem in texts else []
            if not lines:
                broken.setdefault(i, f"has no captions in {CAPTIONS}")
        except SourceError as e:
            broken.setdefault(i, f"has damaged captions ({e})")
        captions.append(lines)
    about = {**source.about, "files": {**source.about["files"], **digest}}
    return replace(source, captions=captions, about=about, broken=broken)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _texts(folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """The caption files by their images' stems, and their entry in the manifest."""
    members = [m for m in files_below(folder, (".txt",)) if PurePosixPath(m).name.startswith("image_")]
    texts: dict[str, Path] = {}
    for member in members:
        stem = PurePosixPath(member).stem
        if stem in texts:
            raise SourceError(f"{folder / member} and {texts[stem]} are of the same image: remove one of them")
        texts[stem] = folder / member
    return texts, described_folder(folder, members)


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """Centre square, resized to size (64)."""
    side = size or DEFAULT_SIZE
    official = (source / "jpg").is_dir()
    result = _official(source, side) if official else class_folders(locate_tree(source), side)
    if not (source / CAPTIONS).is_dir():
        return result
    texts, digest = _texts(source / CAPTIONS)
    return {split: with_captions(part, texts, digest) for split, part in result.items()}
