"""Every preparation writes train, valid and test, which share no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import holdout
from data_prep.__main__ import main
from data_prep.arrays import array_source
from data_prep.holdout import hold_out, validation_size, with_valid
from data_prep.source import Source
from dtrain.data.shards import Split, open_split
from tests.data_prep import originals
from tests.data_prep.refusing import options

NAMES = ("train", "valid", "test")
TREE = {"a": 21, "b": 10}


def opened(folder: Path) -> list[Split]:
    return [open_split(folder / name) for name in NAMES]


def rows(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def colours(folder: Path, layout: dict[str, int]) -> Path:
    """An image tree in which no two images are alike."""
    rng = np.random.default_rng(0)
    for name, count in layout.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            (folder / name / f"{k:03d}.jpg").write_bytes(originals.jpeg(pixels))
    return folder


@pytest.mark.parametrize(
    ("name", "make", "sizes"),
    [
        ("celeba", originals.celeba, (8, 2, 2)),
        ("flowers102", originals.flowers, (4, 4, 4)),
        ("svhn", originals.svhn, (14 + 11, 1, 10)),
        ("mnist", originals.mnist, (23, 2, 10)),
        ("fashion_mnist", originals.mnist, (23, 2, 10)),
        ("cifar10", originals.cifar10, (18, 2, 4)),
        ("cifar10", lambda f: colours(f, {f"{s}/{c}": 20 for s in ("train", "test") for c in "ab"}), (36, 4, 40)),
        ("folder", lambda f: colours(f, TREE), (26, 2, 3)),
        ("folder", lambda f: colours(f, {"train": 20, "test": 3}), (18, 2, 3)),
        ("folder", lambda f: colours(f, {"train": 20, "val": 5, "test": 3}), (20, 5, 3)),
    ],
)
def test_the_splits_have_their_sizes_and_share_no_image(
    tmp_path: Path, name: str, make: Callable[[Path], object], sizes: tuple[int, ...]
) -> None:
    make(tmp_path / "in")
    assert main(options(name, tmp_path / "in", tmp_path / "out")) == 0
    splits = opened(tmp_path / "out")
    assert tuple(map(len, splits)) == sizes
    assert len(set.union(*map(rows, splits))) == sum(sizes)


def test_the_embedded_digits_need_no_source_and_every_split_has_all_of_them(tmp_path: Path) -> None:
    assert main(["digits", "--out", str(tmp_path)]) == 0
    splits = opened(tmp_path)
    counts = [np.bincount(s.arrays["labels"]).tolist() for s in splits]
    assert counts == [[360] * 10, [40] * 10, [100] * 10] and splits[0].image_shape == (1, 28, 28)
    assert len(set.union(*map(rows, splits))) == 5000


def faces_of_one_part(folder: Path, valid: int = 0) -> Path:
    """20 faces in CelebA's layout; the first `valid` are validation images, the others training ones."""
    source = originals.celeba(folder, 20)
    parts = [f"{i:06d}.jpg {int(i <= valid)}" for i in range(1, 21)]
    (source / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return source


@pytest.mark.parametrize(("valid", "numbers"), [(0, (10, 15, 20)), (3, (3, 15, 20))])
def test_hold_out_makes_the_splits_that_an_archive_lacks_by_order(
    tmp_path: Path, valid: int, numbers: tuple[int, ...]
) -> None:
    source = faces_of_one_part(tmp_path / "in", valid)
    assert main([*options("celeba", source, tmp_path / "out"), "--hold-out", "5"]) == 0
    every = list(range(1, 21))
    expected = [every[:10], every[10:15], every[15:]] if not valid else [every[3:15], every[:3], every[15:]]
    for split, found in zip(opened(tmp_path / "out"), expected, strict=True):
        attributes = np.stack([originals.face_attributes(n) == 1 for n in found])
        assert np.array_equal(split.arrays["attributes"], attributes)
        middle = [int(originals.face(n)[109, 89, 1]) for n in found]
        assert all(abs(int(i[4, 4, 1]) - g) < 6 for i, g in zip(split.images, middle, strict=True))


def test_too_large_a_hold_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = faces_of_one_part(tmp_path / "in")
    assert main([*options("celeba", source, tmp_path / "out"), "--hold-out", "10"]) == 2
    assert "--hold-out 10: must lie in 1..9" in capsys.readouterr().err


def test_a_training_split_of_one_image_has_none_to_spare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours(tmp_path / "in", {"train": 1, "test": 1})
    assert main(options("folder", tmp_path / "in", tmp_path / "out")) == 2
    assert "none to spare for a validation split" in capsys.readouterr().err


def test_data_prepared_without_a_validation_split_is_prepared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old training split lies there, made from the same files; it holds what is now validated on."""
    originals.mnist(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.__main__.with_valid", lambda splits: splits)
        assert main(options("mnist", tmp_path / "in", tmp_path / "out")) == 0
    assert len(open_split(tmp_path / "out" / "train")) == 25 and not (tmp_path / "out" / "valid").exists()
    assert main(options("mnist", tmp_path / "in", tmp_path / "out")) == 0
    assert [len(s) for s in opened(tmp_path / "out")] == [23, 2, 10]


def test_the_sizes_are_those_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST, CIFAR-10, SVHN's train_32x32.mat: the last 5,000; the embedded digits: a tenth."""
    assert [validation_size(n) for n in (60_000, 50_000, 73_257, 4_000, 9, 2)] == [5_000, 5_000, 5_000, 400, 1, 1]


def numbered(labels: list[int]) -> Source:
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return array_source(images, np.array(labels), {}, None, "n")


def test_the_last_are_taken_of_each_class_where_the_samples_lie_class_after_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holdout, "VALIDATION", 3)
    by_class = numbered([2] * 20 + [0] * 10 + [1] * 10)
    assert with_valid({"train": by_class})["valid"].names == ["n[19]", "n[29]", "n[39]"]
    mixed = numbered([0, 1, 2, 1] * 10)
    found = with_valid({"train": mixed})
    assert found["valid"].names == ["n[37]", "n[38]", "n[39]"] and len(found["train"]) == 37
    assert [int(found["valid"].read(i).item()) for i in range(3)] == [37, 38, 39]
    held = hold_out({"train": by_class}, 4)
    assert [held[name].arrays["labels"].tolist() for name in ("valid", "test")] == [[2, 2, 0, 1]] * 2
    assert held["test"].names == ["n[18]", "n[19]", "n[29]", "n[39]"]


def test_a_broken_sample_stays_the_one_that_is_broken(tmp_path: Path) -> None:
    source = faces_of_one_part(tmp_path / "in")
    partition = source / "list_eval_partition.txt"
    partition.write_text("".join(line for line in partition.open() if not line.startswith(("000003", "000017"))))
    assert main([*options("celeba", source, tmp_path / "out"), "--hold-out", "5", "--skip-broken"]) == 0
    left_out = [[entry["sample"][-10:] for entry in s.manifest["left_out"]] for s in opened(tmp_path / "out")]
    assert left_out == [["000003.jpg"], [], ["000017.jpg"]]
