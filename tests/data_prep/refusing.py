"""The command that must refuse, and what it may say and leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from tests.data_prep import originals

Damage = Callable[[Path], object]
GOOD: dict[str, Damage] = {
    "celeba": originals.celeba,
    "svhn": originals.svhn,
    "mnist": originals.mnist,
    "fashion_mnist": originals.mnist,
    "cifar10": originals.cifar10,
    "flowers102": originals.flowers,
    "folder": lambda folder: originals.class_folders(
        folder, {"train/a": 2, "train/b": 2, "valid/a": 1, "test/a": 1, "test/b": 1}
    ),
}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
ATTRIBUTES, PARTITION, FACES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip"
BATCH, TAR = "cifar-10-batches-py/data_batch_2", "cifar-10-python.tar.gz"
PICTURE = "train/a/001.png"


def options(name: str, source: Path, out: Path) -> list[str]:
    size = {"celeba": ["--size", "8"], "folder": ["--size", "8"], "flowers102": ["--size", "8"]}.get(name, [])
    return [name, "--source", str(source), "--out", str(out), "--workers", "1", *size]


def manifests(out: Path) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("*/manifest.json")}


def one_line(text: str) -> str:
    """The message: the last line, behind whatever the progress bar drew."""
    assert "Traceback" not in text
    assert "data_prep " in text, text
    message = text[text.rindex("data_prep ") :]
    assert message.count("\n") == 1 and len(message) > 40
    return message


def refused(capsys: pytest.CaptureFixture[str], name: str, source: Path, out: Path, *more: str) -> str:
    """The message of a command that must fail and leave the splits in `out` whole."""
    before = manifests(out)
    capsys.readouterr()
    assert main([*options(name, source, out), *more]) == 2
    message = one_line(capsys.readouterr().err)
    assert manifests(out) == before
    assert not before or main(["verify", str(out)]) == 0
    return message
