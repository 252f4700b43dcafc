"""Originals that unpack to far more than they should, and what else could fill a disk, a memory or a day."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep import cifar10, files, images, mnist, pixels, svhn
from data_prep.__main__ import main
from data_prep.source import SourceError
from dtrain.data.shards import open_split
from tests.data_prep import originals
from tests.data_prep.damage import (
    Y,
    member,
    patched_member,
    png,
)
from tests.data_prep.refusing import (
    BATCH,
    PARTITION,
    TAR,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Damage,
    manifests,
    one_line,
    options,
    refused,
)


def gzipped_zeros(file: Path, count: int) -> None:
    with gzip.open(file, "wb", compresslevel=1) as f:
        for _ in range(count >> 20):
            f.write(bytes(1 << 20))


def bomb_idx(folder: Path) -> Path:
    """It promises 25 labels and unpacks to 200 MB."""
    file = folder / TRAIN_LABELS
    gzipped_zeros(file, 200 << 20)
    file.write_bytes(gzip.compress(b"\0\0\x08\1" + struct.pack(">I", 25)) + file.read_bytes())
    return file


def bomb_promised(folder: Path) -> Path:
    """It promises the 40 MB that it unpacks to."""
    file = folder / TRAIN_IMAGES
    gzipped_zeros(file, 40 << 20)
    file.write_bytes(gzip.compress(b"\0\0\x08\3" + struct.pack(">III", 40, 1024, 1024)) + file.read_bytes())
    return file


def bomb_tar_padding(folder: Path) -> Path:
    """A tar whose first member is a folder's name of 60 MB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 60 << 20
    gzipped_zeros(folder / TAR, 60 << 20)
    whole = gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + (folder / TAR).read_bytes()
    (folder / TAR).write_bytes(whole)
    shutil.rmtree(folder / cifar10.FOLDER)
    return folder / TAR


def bomb_batch(folder: Path) -> Path:
    os.truncate(folder / BATCH, 1 << 33)
    return folder / BATCH


def bomb_text(folder: Path) -> Path:
    os.truncate(folder / PARTITION, 1 << 33)
    return folder / PARTITION


def bomb_mat(folder: Path) -> Path:
    file = folder / "test_32x32.mat"
    savemat(file, {"X": np.zeros((32, 32, 3, 20_000), dtype=np.uint8), "y": Y}, do_compression=True)
    return file


@pytest.mark.parametrize(
    ("name", "bomb"),
    [
        ("mnist", bomb_idx),
        ("mnist", bomb_promised),
        ("cifar10", bomb_tar_padding),
        ("cifar10", bomb_batch),
        ("celeba", bomb_text),
        ("svhn", bomb_mat),
    ],
)
def test_a_bomb_is_never_unpacked_beyond_the_limit(
    earlier: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    bomb: Callable[[Path], Path],
) -> None:
    limit = 1 << 24
    for module, constant in ((mnist, "WHOLE_LIMIT"), (svhn, "WHOLE_LIMIT"), (cifar10, "TAR_LIMIT"), (files, "LIMIT")):
        monkeypatch.setattr(module, constant, limit)
    source = Path(shutil.copytree(earlier(name) / "in", tmp_path / "in"))
    file = bomb(source)
    tracemalloc.start()
    try:
        message = refused(capsys, name, source, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.name in message and "the limit of " in message
    assert peak < 5 * limit, f"{peak / 1e6:.0f} MB"


def test_a_bomb_in_a_zip_or_a_tree_is_a_broken_sample(
    earlier: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit holds whether or not the archive's directory is honest about the size; it holds for each sample."""
    zeros = bytes(30 << 20)
    monkeypatch.setattr(files, "LIMIT", 1 << 20)
    liar = patched_member(22, 24, struct.pack("<I", 20))
    packed: Damage = member("train/b/zz.png", zeros, zipfile.ZIP_DEFLATED)
    sparse: Damage = lambda folder: (folder / "train/b/zz.png").write_bytes(zeros)  # noqa: E731
    for number, damage in enumerate((packed, sparse, liar)):
        source, out = tmp_path / f"in{number}", tmp_path / f"out{number}"
        shutil.copytree(earlier("folder") / "in", source)
        damage(source)
        message = refused(capsys, "folder", source, out)
        assert "zz.png" in message
        assert damage is liar or "the limit of 1,048,576 bytes" in message
        assert main([*options("folder", source, out), "--skip-broken"]) == 0
        train = open_split(out / "train")
        assert len(train) == 4 and [entry["sample"] for entry in train.manifest["left_out"]] == ["train/b/zz.png"]


def test_decoding_never_starts_for_an_image_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(images.BrokenImageError, match="8 × 8 pixels, more than the limit of 63"):
        images.decode(png(8, 8), 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 64)
    assert images.decode(png(8, 8), 3).size == (8, 8)


@pytest.mark.parametrize("size", [None, 12])
def test_idx_images_that_are_not_square_are_cropped_and_the_manifest_says_so(
    earlier: Callable[[str], Path], tmp_path: Path, size: int | None
) -> None:
    source, out = Path(shutil.copytree(earlier("mnist") / "in", tmp_path / "in")), tmp_path / "out"
    wide = np.random.default_rng(0).integers(0, 256, (25, 20, 28), dtype=np.uint8)
    (source / TRAIN_IMAGES).write_bytes(gzip.compress(originals.idx(wide)))
    assert main([*options("mnist", source, out), *(["--size", str(size)] if size else [])]) == 0
    train, test = (open_split(out / split) for split in ("train", "test"))
    assert train.manifest["source"]["crop"] == "centre square" and test.manifest["source"]["crop"] == "none"
    assert train.manifest["source"]["resize"] == (f"PIL bicubic to {size}" if size else "none")
    if size is None:
        assert np.array_equal(train.images[..., 0], wide[:23, :, 4:24])


def test_unusual_images_are_read_as_what_they_show(tmp_path: Path) -> None:
    """CMYK, palettes, grey, alpha, 16 bits a channel of colour, and the two pictures in one file of some cameras."""
    source = tmp_path / "in" / "train"
    source.mkdir(parents=True)
    orange = Image.new("RGB", (8, 8), (240, 120, 0))
    orange.convert("CMYK").save(source / "cmyk.jpg")
    orange.quantize().save(source / "palette.png")
    orange.convert("RGBA").save(source / "alpha.png")
    orange.save(source / "one.webp")
    orange.save(source / "one.bmp")
    orange.save(source / "gif.jpg", "GIF")
    orange.save(source / "camera.jpg", "MPO", save_all=True, append_images=[orange])
    assert main(["folder", "--source", str(source.parent), "--out", str(tmp_path / "out"), "--size", "8"]) == 0
    found = [image for split in ("train", "valid") for image in open_split(tmp_path / "out" / split).images]
    for name, image in zip(sorted(p.name for p in source.iterdir()), found, strict=True):
        assert abs(image.astype(int) - (240, 120, 0)).max() < 32, name


def test_the_folder_of_the_originals_is_not_replaced_by_a_split(
    earlier: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(earlier("folder") / "in", tmp_path / "in"))
    before = sorted(source.rglob("*.jpg"))
    assert "would be replaced" in refused(capsys, "folder", source, source)
    assert sorted(source.rglob("*.jpg")) == before


def test_an_interrupted_run_with_a_damaged_journal_starts_again(
    earlier: Callable[[str], Path], tmp_path: Path
) -> None:
    good = earlier("folder")
    work = tmp_path / "out" / "train.incomplete"
    for journal, array in [(b"[]\n", b""), (b"\0" * 40, b""), (b"{}\n", b"\x93NUMPY\1\0"), (b"\xff\n", b"PK\3\4")]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        work.mkdir(parents=True)
        (work / pixels.JOURNAL).write_bytes(journal)
        (work / "images.npy").write_bytes(array)
        assert main(options("folder", good / "in", tmp_path / "out")) == 0
        assert manifests(tmp_path / "out") == manifests(good / "out")


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_size_beyond_every_disk_is_refused(
    earlier: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Its number of bytes overflows 64 bits."""
    source = [] if name == "digits" else ["--source", str(earlier(name) / "in")]
    assert main([name, *source, "--out", str(tmp_path), "--size", "10000000000"]) == 2
    assert "GB free" in one_line(capsys.readouterr().err)


def test_a_killed_worker_ends_the_command_with_what_to_do_and_it_continues(
    earlier: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", Path(shutil.copytree(earlier("folder") / "out", tmp_path / "out"))
    (source / "train" / "a").mkdir(parents=True)
    first = source / "train" / "a" / "0.jpg"
    first.write_bytes(originals.jpeg(np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)))
    for number in range(1, 120):
        os.link(first, first.with_name(f"{number}.jpg"))
    before = manifests(out)
    command = [sys.executable, "-m", "data_prep", *options("folder", source, out), "--workers", "2"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    kill_a_child(run.pid)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 2 and "a worker process was killed" in one_line(errors)
    assert manifests(out) == before and main(["verify", str(out / "train")]) == 0
    assert main(options("folder", source, out)) == 0
    assert len(open_split(out / "train")) == 108 and not list(out.glob("*.incomplete"))


def kill_a_child(parent: int) -> None:
    """SIGKILLs the first process that `parent` starts, once it is there."""
    file, deadline = Path(f"/proc/{parent}/task/{parent}/children"), time.monotonic() + 60
    while not (children := file.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(int(children[0]), signal.SIGKILL)


def test_limits_leave_room_for_the_real_data_sets() -> None:
    """Bytes of the largest originals: CelebA's attributes, a CIFAR batch, its archive, SVHN's extra images, MNIST."""
    assert files.LIMIT > 2 * 31_035_704 and files.LIMIT > 2 * 26_721_026
    assert cifar10.TAR_LIMIT > 186_000_000
    assert files.WHOLE_LIMIT > 531_131 * 3072 + 531_131 and files.WHOLE_LIMIT > 60_000 * 784
    with pytest.raises(SourceError, match="limit"):
        files.read(Path(__file__), 10)
