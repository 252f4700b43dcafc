"""The validation and test splits that original files do not have: the last of their training samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.source import Source, SourceError

VALIDATION = 5000


def validation_size(count: int) -> int:
    """How many of so many training samples: VALIDATION, but at most a tenth of them, and at least one."""
    return max(1, min(VALIDATION, count // 10))


def with_valid(splits: dict[str, Source]) -> dict[str, Source]:
    """The splits, with the last training samples as the validation split where the originals have none."""
    if "valid" in splits or "train" not in splits:
        return splits
    count = len(splits["train"])
    if count < 2:
        raise SourceError("the training split has one image, and none to spare for a validation split: add some")
    train, valid = _cut(splits["train"], validation_size(count))
    return {**splits, "train": train, "valid": valid}


def hold_out(splits: dict[str, Source], count: int) -> dict[str, Source]:
    """The last `count` training samples as the test split that the originals lack.

    The `count` before them are the validation split, unless the originals have one.
    """
    if "test" in splits:
        raise SourceError("--hold-out: the original files have a test split already")
    if "train" not in splits:
        raise SourceError("--hold-out: the original files have no training split")
    lacking = [split for split in ("test", "valid") if split not in splits]
    most = (len(splits["train"]) - 1) // len(lacking)
    if not 0 < count <= most:
        raise SourceError(f"--hold-out {count}: must lie in 1..{most}")
    found = dict(splits)
    for split in lacking:
        found["train"], found[split] = _cut(found["train"], count)
    return found


def _cut(source: Source, count: int) -> tuple[Source, Source]:
    """A source without its last `count` samples, and these."""
    last = _last(source, count)
    return source.part(np.setdiff1d(np.arange(len(source)), last)), source.part(last)


def _last(source: Source, count: int) -> npt.NDArray[np.int64]:
    """The rows of the last `count` samples; where the samples lie class after class, of each class its share."""
    rows = np.arange(len(source))
    if "labels" not in source.arrays:
        return rows[-count:]
    labels = source.arrays["labels"]
    _, first, label, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    if np.count_nonzero(np.diff(label)) >= len(sizes):
        return rows[-count:]
    left = sizes[label] - (rows - first[label]) - 0.5  # of its class, with half of itself
    return np.sort(np.argsort(left / sizes[label], kind="stable")[:count])
