"""CelebA, aligned and cropped: 202,599 faces of 178 × 218, 40 attributes, the official partition.

Files: img_align_celeba.zip (or the folder), list_attr_celeba.txt, list_eval_partition.txt.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.files import Tree, described, find, locate_tree, read_text
from data_prep.folder import TreeReader
from data_prep.source import Source, SourceError

SPLITS = ("train", "valid", "test")  # 0, 1, 2 in list_eval_partition.txt
DEFAULT_SIZE = 64
_LONGEST_COUNT = 18  # digits and blanks


def read_attributes(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """(attribute names, image name → its ±1 words). SourceError if the file is not whole."""
    lines = read_text(file).splitlines()
    if len(lines) < 2 or not lines[0].strip().isdecimal() or len(lines[0]) > _LONGEST_COUNT:
        raise SourceError(
            f"{file}: the first line must be the number of images, the second the attributes: download it again"
        )
    names = lines[1].split()
    if not names or len(set(names)) < len(names):
        raise SourceError(f"{file}: the second line must name the attributes, each once: download it again")
    rows = {words[0]: words[1:] for words in (line.split() for line in lines[2:]) if words}
    if len(rows) != int(lines[0]):
        raise SourceError(f"{file} says it has {int(lines[0])} images but has {len(rows)}: download it again")
    for image, values in rows.items():
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise SourceError(f"{file}: the row of {image} is not {len(names)} times 1 or -1: download it again")
    return names, rows


def read_partition(file: Path) -> dict[str, str]:
    """Image name → split name."""
    partition: dict[str, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2") or words[0] in partition:
            raise SourceError(
                f"{file}:{number}: expected a new image's name and 0, 1 or 2, got {line[:80]!r}: download it again"
            )
        partition[words[0]] = SPLITS[int(words[1])]
    return partition


def by_name(tree: Tree) -> dict[str, str]:
    """Image name → its path in the tree. SourceError if two folders have the same name."""
    images: dict[str, str] = {}
    for member in tree.members:
        name = PurePosixPath(member).name
        if name in images:
            raise SourceError(f"{tree.path} has both {images[name]} and {member}: remove one of them")
        images[name] = member
    return images


def _check_counts(images: dict[str, str], attributes: dict[str, list[str]], archive: Path) -> None:
    """A cut archive shows as annotated images that are not there."""
    absent = [name for name in attributes if name not in images]
    if absent:
        raise SourceError(
            f"{archive} holds {len(images)} images, but {len(absent)} annotated ones are missing, the first "
            f"{absent[0]}: download it again, or cut the annotation files to the images you have"
        )


def splits(source: Path, size: int | None, crop: int | None = None) -> dict[str, Source]:
    """The centre square of the width (178 of 178 × 218 pixels), or of `crop` pixels, resized to size (64)."""
    if crop is not None and crop < 1:
        raise SourceError(f"--crop {crop}: must be at least 1")
    side = size or DEFAULT_SIZE
    tree = locate_tree(source, "img_align_celeba.zip", "img_align_celeba")
    images = by_name(tree)
    attribute_file, partition_file = find(source, "list_attr_celeba.txt"), find(source, "list_eval_partition.txt")
    attribute_names, attributes = read_attributes(attribute_file)
    partition = read_partition(partition_file)
    _check_counts(images, attributes, tree.path)
    about = {
        "files": {**tree.describe(), **described(attribute_file, partition_file)},
        "crop": f"centre {crop} × {crop}" if crop else "centre square of the original's width",
        "resize": f"PIL bicubic to {side}",
        "attribute_names": attribute_names,
    }
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in images:
        found[partition.get(name, "train")].append(name)
    result = {}
    for split, names in found.items():
        files: dict[Path, Container[str]] = {attribute_file: attributes, partition_file: partition}
        broken = {
            i: f"has no row in {file.name}"
            for i, name in enumerate(names)
            for file, rows in files.items()
            if name not in rows
        }
        missing = ["-1"] * len(attribute_names)
        values = np.array([attributes.get(name, missing) for name in names]).reshape(-1, len(attribute_names))
        result[split] = Source(
            names=[images[n] for n in names],
            read=TreeReader(tree, [images[n] for n in names], side, crop=crop),
            shape=(side, side, 3),
            arrays={"attributes": (values == "1").astype(np.uint8)},
            about=about,
            broken=broken,
        )
    return result
