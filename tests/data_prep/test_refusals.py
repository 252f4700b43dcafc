"""Bad input is refused with the file's name and what to do, and never leaves half-written shards."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main
from dtrain.data.shards import open_split
from tests.data_prep import originals


def cut(file: Path, share: float = 0.5) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def refused(capsys: pytest.CaptureFixture[str], name: str, source: Path, *options: str) -> str:
    """The message of a command that must fail and write nothing."""
    out = source.parent / "out"
    assert main([name, "--source", str(source), "--out", str(out), "--workers", "1", *options]) == 2
    assert not list(out.glob("*/manifest.json"))
    message = capsys.readouterr().err
    return message[message.index("data_prep ") :]


MAKERS: dict[str, Callable[[Path], object]] = {
    "celeba": originals.celeba,
    "svhn": originals.svhn,
    "mnist": originals.mnist,
    "cifar10": lambda folder: originals.cifar10(folder, archive=True),
    "flowers102": originals.flowers,
}


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("celeba", "img_align_celeba.zip", "is not a complete zip archive"),
        ("celeba", "list_attr_celeba.txt", "says it has 12 images but has"),
        ("svhn", "extra_32x32.mat", "cannot be read"),
        ("mnist", "train-images-idx3-ubyte.gz", "is not a complete gzip file"),
        ("mnist", "t10k-labels-idx1-ubyte.gz", "is not a complete gzip file"),
        ("cifar10", "cifar-10-python.tar.gz", "is not a complete gzip file"),
        ("flowers102", "setid.mat", "cannot be read"),
    ],
)
def test_a_truncated_original_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str, message: str
) -> None:
    MAKERS[name](tmp_path / "in")
    cut(tmp_path / "in" / file)
    error = refused(capsys, name, tmp_path / "in")
    assert file in error and message in error and "download it again" in error


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("celeba", "list_eval_partition.txt"),
        ("svhn", "extra_32x32.mat"),
        ("mnist", "train-labels-idx1-ubyte.gz"),
        ("flowers102", "imagelabels.mat"),
    ],
)
def test_a_missing_original_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str
) -> None:
    MAKERS[name](tmp_path / "in")
    (tmp_path / "in" / file).unlink()
    assert file in refused(capsys, name, tmp_path / "in")


def test_images_that_the_annotations_promise_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = originals.celeba(tmp_path / "in", 12, zipped=False)
    (source / "img_align_celeba" / "000007.jpg").unlink()
    error = refused(capsys, "celeba", source)
    assert "holds 11 images, but 1 annotated ones are missing, the first 000007.jpg" in error


def remove_annotation(source: Path, image: str) -> None:
    file = source / "list_attr_celeba.txt"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(image)]
    lines[0] = str(len(lines) - 2)
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("damage", ["half", "empty", "text", "annotation", "partition"])
def test_a_broken_sample_is_named_and_left_out_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    source = originals.celeba(tmp_path / "in", 12, zipped=False)
    image, partition = source / "img_align_celeba" / "000003.jpg", source / "list_eval_partition.txt"
    if damage == "half":
        cut(image)
    elif damage == "empty":
        image.write_bytes(b"")
    elif damage == "text":
        image.write_text("<html>quota exceeded</html>")
    elif damage == "annotation":
        remove_annotation(source, "000003.jpg")
    else:
        partition.write_text(partition.read_text().replace("000003.jpg 0\n", ""))
    error = refused(capsys, "celeba", source, "--size", "8")
    assert "000003.jpg" in error and "--skip-broken" in error
    out = tmp_path / "out"
    assert main(["celeba", "--source", str(source), "--out", str(out), "--size", "8", "--skip-broken"]) == 0
    train = open_split(out / "train")
    assert len(train) == 7
    assert [(entry["sample"], bool(entry["why"])) for entry in train.manifest["left_out"]] == [
        ("img_align_celeba/000003.jpg" if damage == "zip" else "000003.jpg", True)
    ]
    expected = [originals.face_attributes(n)[20] == 1 for n in (1, 2, 5, 7, 9, 10, 11)]
    assert train.arrays["attributes"][:, 20].astype(bool).tolist() == expected
    assert main(["verify", str(out)]) == 0


def test_too_little_disk_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = originals.celeba(tmp_path / "in", 12)
    error = refused(capsys, "celeba", source, "--size", "400000")
    assert "GB free" in error and "a smaller --size" in error


def test_a_mat_file_of_matlab_7_3_says_how_to_save_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals.svhn(tmp_path / "in")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "in" / "train_32x32.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(600))
    assert "save it again with -v7" in refused(capsys, "svhn", tmp_path / "in")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    originals.cifar10(tmp_path / "in")
    (tmp_path / "in" / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Payload()))
    assert "data_batch_3 cannot be read" in refused(capsys, "cifar10", tmp_path / "in")
    assert not (tmp_path / "ran").exists()


def test_captions_must_cover_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = originals.flowers(tmp_path / "in")
    (source / "text_c10" / "class_00002" / "image_00004.txt").unlink()
    assert "image_00004.jpg has no captions in text_c10" in refused(capsys, "flowers102", source)


def test_grey_images_have_no_jpg_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals.mnist(tmp_path / "in")
    assert "leave jpg out" in refused(capsys, "mnist", tmp_path / "in", "--formats", "npy,jpg")


def test_a_tree_that_is_too_deep_or_mixed_says_which_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = originals.class_folders(tmp_path / "deep" / "in", {"x/y": 1})
    assert "x/y/000.jpg lies too deep" in refused(capsys, "folder", deep, "--size", "8")
    mixed = originals.class_folders(tmp_path / "mixed" / "in", {"x": 1, ".": 1})
    assert "000.jpg lies outside the class folders" in refused(capsys, "folder", mixed, "--size", "8")


@pytest.mark.parametrize("option", ["--size=0", "--workers=0", "--hold-out=99"])
def test_senseless_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    tree = originals.class_folders(tmp_path / "in", {"train": 3})
    assert option.partition("=")[0] in refused(capsys, "folder", tree, "--size=8", option)


def test_held_out_samples_come_from_a_training_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = originals.class_folders(tmp_path / "in", {"valid": 3})
    assert "no training split" in refused(capsys, "folder", tree, "--size=8", "--hold-out=1")
