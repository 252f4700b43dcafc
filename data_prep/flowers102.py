"""Oxford Flowers 102: the jpg folder with setid.mat and imagelabels.mat, or class folders; captions as text_c10.

text_c10 is Reed et al.'s layout: text_c10/class_00001/image_06734.txt, one caption per line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.files import Tree, described, find, locate_tree
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


def with_captions(source: Source, files: dict[str, Path]) -> Source:
    """The source with the lines of each image's text file; an image without one is broken."""
    stems = [PurePosixPath(name).stem for name in source.names]
    absent = {i: f"has no captions ({CAPTIONS})" for i, stem in enumerate(stems) if stem not in files}
    captions = [
        [line.strip() for line in files[s].read_text(errors="replace").splitlines() if line.strip()]
        if s in files
        else []
        for s in stems
    ]
    return replace(source, captions=captions, broken={**source.broken, **absent})


def splits(source: Path, size: int | None) -> dict[str, Source]:
    """Centre square, resized to size (64)."""
    side = size or DEFAULT_SIZE
    official = (source / "jpg").is_dir()
    result = _official(source, side) if official else class_folders(locate_tree(source), side)
    if not (source / CAPTIONS).is_dir():
        return result
    files = {f.stem: f for f in sorted((source / CAPTIONS).rglob("image_*.txt"))}
    return {split: with_captions(part, files) for split, part in result.items()}
