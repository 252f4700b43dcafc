"""Every data set from archives in its original layout, through the command line, to the arrays of its shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from dtrain.data.shards import Split, open_split
from tests.data_prep import originals


def prepare(name: str, source: Path, out: Path, *options: str) -> None:
    assert main([name, "--source", str(source), "--out", str(out), "--workers", "2", *options]) == 0


def labels(split: Split) -> list[int]:
    return list(map(int, split.arrays["labels"]))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("width", "height"), [(178, 218), (89, 109)])
def test_celeba_crops_the_centre_and_keeps_partition_and_attributes(
    tmp_path: Path, width: int, height: int, zipped: bool
) -> None:
    prepare("celeba", originals.celeba(tmp_path / "in", 12, width, height, zipped), tmp_path / "out")
    expected = {"train": [1, 2, 3, 5, 7, 9, 10, 11], "valid": [4, 8], "test": [6, 12]}
    for name, numbers in expected.items():
        split = open_split(tmp_path / "out" / name)
        assert split.image_shape == (3, 64, 64) and split.attribute_names == originals.ATTRIBUTES
        attributes = np.stack([originals.face_attributes(n) == 1 for n in numbers])
        assert np.array_equal(split.arrays["attributes"], attributes)
        for row, number in zip(split.images, numbers, strict=True):
            assert row[2:-2, :, 0].max() < 30  # no trace of the red bands, but for the JPEG's edge
            assert abs(row[32, 32].astype(int) - originals.face(number)[109, 89]).max() < 6


def test_celeba_can_be_cut_out_closer(tmp_path: Path) -> None:
    """--crop 140 as the authors of the stacked WAE do, --crop 128 as those of AE-OT."""
    source = originals.celeba(tmp_path / "in", 6)
    prepare("celeba", source, tmp_path / "out", "--crop", "140", "--size", "140")
    prepare("celeba", source, tmp_path / "whole", "--size", "178")
    close, wide = (open_split(tmp_path / f / "train") for f in ("out", "whole"))
    np.testing.assert_array_equal(close.images, wide.images[:, 19:159, 19:159])
    assert close.manifest["source"]["crop"] == "centre 140 × 140"


@pytest.mark.parametrize(("crop", "message"), [("0", "--crop 0: must be at least 1"), ("179", "for --crop 179")])
def test_an_impossible_crop_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], crop: str, message: str
) -> None:
    source = originals.celeba(tmp_path / "in", 6)
    assert main(["celeba", "--source", str(source), "--out", str(tmp_path / "out"), "--crop", crop]) == 2
    assert message in capsys.readouterr().err


def test_the_resize_is_antialiased(tmp_path: Path) -> None:
    originals.celeba(tmp_path / "in", 6)
    stripes = np.zeros((218, 178, 3), dtype=np.uint8)
    stripes[::2] = 255
    (tmp_path / "in" / "img_align_celeba.zip").unlink()
    (tmp_path / "in" / "img_align_celeba").mkdir()
    for i in range(1, 7):
        Image.fromarray(stripes).save(
            tmp_path / "in" / "img_align_celeba" / f"{i:06d}.jpg", quality=100, subsampling=0
        )
    prepare("celeba", tmp_path / "in", tmp_path / "out", "--size", "32")
    inner = open_split(tmp_path / "out" / "train").images[0, 2:-2, 2:-2].astype(int)
    assert abs(inner - 127).max() < 16  # four-tap bicubic gives stripes of up to ±127 here


def test_svhn_joins_train_and_extra_and_calls_ten_zero(tmp_path: Path) -> None:
    for compressed in (True, False):
        made = originals.svhn(tmp_path / f"in{compressed}", compressed)
        prepare("svhn", tmp_path / f"in{compressed}", tmp_path / f"out{compressed}")
        train, valid, test = (open_split(tmp_path / f"out{compressed}" / s) for s in ("train", "valid", "test"))
        assert np.array_equal(train.images, np.concatenate([made["train"][0][:14], made["extra"][0]]))
        assert labels(train) == [y % 10 for y in (*made["train"][1][:14], *made["extra"][1])]
        assert np.array_equal(valid.images, made["train"][0][14:]) and labels(valid) == [5]
        assert train.manifest["source"]["parts"] == {"train": 15, "extra": 11}
        assert np.array_equal(test.images, made["test"][0]) and labels(test) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_and_fashion_mnist(tmp_path: Path, name: str, zipped: bool) -> None:
    made = originals.mnist(tmp_path / "in", zipped)
    prepare(name, tmp_path / "in", tmp_path / "out")
    for split_name, prefix, rows in (
        ("train", "train", (0, 23)),
        ("valid", "train", (23, 25)),
        ("test", "t10k", (0, 10)),
    ):
        split, (images, numbers) = open_split(tmp_path / "out" / split_name), made[prefix]
        assert np.array_equal(split.images[..., 0], images[slice(*rows)])
        assert labels(split) == list(numbers[slice(*rows)])
        assert split.class_names[9] == {"mnist": "9", "fashion_mnist": "ankle boot"}[name]


@pytest.mark.parametrize("archive", [True, False])
def test_cifar10_from_the_python_batches(tmp_path: Path, archive: bool) -> None:
    made = originals.cifar10(tmp_path / "in", archive)
    prepare("cifar10", tmp_path / "in", tmp_path / "out")
    train, valid = (open_split(tmp_path / "out" / s) for s in ("train", "valid"))
    parts = [made[f"data_batch_{i}"] for i in range(1, 6)]
    assert np.array_equal(np.concatenate([train.images, valid.images]), np.concatenate([p[0] for p in parts]))
    assert labels(train) + labels(valid) == [c for p in parts for c in p[1]]
    assert (len(train), len(valid)) == (18, 2)
    assert labels(open_split(tmp_path / "out" / "test")) == made["test_batch"][1]


def test_cifar10_from_zipped_class_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tree = originals.class_folders(
        tmp_path / "tree", {"train/cat": 2, "train/airplane": 3, "val/cat": 1, "test/cat": 1, "test/airplane": 1}
    )
    originals.zipped(tree, tmp_path / "in" / "cifar10_jpg.zip")
    prepare("cifar10", tmp_path / "in", tmp_path / "out")
    train = open_split(tmp_path / "out" / "train")
    assert train.image_shape == (3, 32, 32) and train.class_names == ["airplane", "cat"]
    assert labels(train) == [0, 0, 0, 1, 1]
    assert [round(float(i.mean()), -1) for i in train.images] == [20, 30, 40, 20, 30]


def test_flowers_from_the_official_files_with_captions(tmp_path: Path) -> None:
    prepare("flowers102", originals.flowers(tmp_path / "in"), tmp_path / "out", "--size", "16")
    for name, numbers in {"train": [1, 4, 7, 10], "valid": [2, 5, 8, 11], "test": [3, 6, 9, 12]}.items():
        split = open_split(tmp_path / "out" / name)
        assert split.image_shape == (3, 16, 16) and labels(split) == [n % 3 for n in numbers]
        assert [abs(int(i[8, 8, 0]) - 10 * n) < 6 for i, n in zip(split.images, numbers, strict=True)]
        captions = json.loads((split.path / "captions.json").read_text())
        assert captions == [[f"caption {k} of flower {n}" for k in range(10)] for n in numbers]


def test_flowers_from_class_folders_number_the_classes_numerically(tmp_path: Path) -> None:
    tree = originals.class_folders(
        tmp_path / "in", {"train/10": 1, "train/2": 2, "train/1": 1, "valid/1": 1, "test/1": 1}
    )
    prepare("flowers102", tree, tmp_path / "out")
    train = open_split(tmp_path / "out" / "train")
    assert train.class_names == ["1", "2", "10"] and labels(train) == [0, 2, 1, 1]


def test_any_image_tree_holds_out_every_tenth_where_it_has_no_splits(tmp_path: Path) -> None:
    tree = originals.class_folders(tmp_path / "in", {"b": 10, "a": 21})
    prepare("folder", tree, tmp_path / "out", "--size", "8")
    train, valid, test = (open_split(tmp_path / "out" / s) for s in ("train", "valid", "test"))
    assert [labels(s) for s in (train, valid, test)] == [[0] * 18 + [1] * 8, [0, 1], [0, 0, 1]]
    assert round(float(test.images[0].mean()), -1) == 20 + 10 * 9


def test_an_image_tree_without_classes_has_no_labels(tmp_path: Path) -> None:
    prepare("folder", originals.class_folders(tmp_path / "in", {".": 12}), tmp_path / "out", "--size", "8")
    assert open_split(tmp_path / "out" / "train").arrays == {}
