"""Oxford Flowers 102: the jpg folder with setid.mat and imagelabels.mat, or class folders; captions as text_c10.

text_c10 is Reed et al.'s layout: text_c10/class_00001/image_06734.txt, one caption per line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.files import Tree, described, described_folder, find, locate_tree
from data_prep.folder import TreeReader, class_folders
from data_prep.source import Source, SourceError
from data_prep.svhn import load_mat

SETS = {"train": "trnid", "valid": "valid", "test": "tstid"}
CAPTIONS = "text_c10"
DEFAULT_SIZE = 64


def _official(source: Path, size: int) -> dict[str, Source]:
    """jpg/image_00001.jpg …, split and labelled by the two .mat files; label 1 becomes 0."""
    tree, set_file, label_file = Tree(source / "jpg"), find(source, "setid.mat"), find(source, "imagelabels.mat")
    labels = load_mat(label_file, "labels")["labels"].ravel().astype(np.int64) - 1
    sets = load_mat(set_file, *SETS.values())
    if len(labels) != len(tree.members):
        raise SourceError(f"{label_file} has {len(labels)} labels for {len(tree.members)} images in {tree.path}")
    about = {
        "files": {**tree.describe(), **described(set_file, label_file)},
        "crop": "centre square",
        "resize": f"PIL bicubic to {size}",
        "class_names": [str(c) for c in range(1, 103)],
    }
    result = {}
    for split, variable in SETS.items():
        numbers = np.sort(sets[variable].ravel().astype(np.int64))
        names = [f"image_{n:05d}.jpg" for n in numbers]
        absent = set(names) - set(tree.members)
        if absent:
            raise SourceError(f"{tree.path} lacks {min(absent)}, which {set_file} lists: unpack it again")
        result[split] = Source(
            names, TreeReader(tree, names, size), (size, size, 3), {"labels": labels[numbers - 1]}, about
        )
    return result


def with_captions(source: Source, texts: dict[str, Path], digest: dict[str, Any]) -> Source:
    """The source with the lines of each image's text file; an image without one is broken."""
    stems = [PurePosixPath(name).stem for name in source.names]
    absent = {i: f"has no captions in {CAPTIONS}" for i, stem in enumerate(stems) if stem not in texts}
    captions = [_lines(texts[stem]) if stem in texts else [] for stem in stems]
    about = {**source.about, "files": {**source.about["files"], **digest}}
    return replace(source, captions=captions, about=about, broken={**source.broken, **absent})


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """Centre square, resized to size (64)."""
    side = size or DEFAULT_SIZE
    official, texts = (source / "jpg").is_dir(), source / CAPTIONS
    result = _official(source, side) if official else class_folders(locate_tree(source), side)
    if not texts.is_dir():
        return result
    files = sorted(texts.rglob("image_*.txt"))
    digest = described_folder(texts, [f.relative_to(texts).as_posix() for f in files])
    return {split: with_captions(part, {f.stem: f for f in files}, digest) for split, part in result.items()}
