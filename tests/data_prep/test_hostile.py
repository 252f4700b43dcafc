"""Files made to do harm: each is refused by name in one line, without a traceback, a hang or a lost earlier split."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep import cifar10, files, images, mnist, pixels, svhn
from data_prep.__main__ import main
from data_prep.source import SourceError
from dtrain.data.shards import open_split
from tests.data_prep import originals

Damage = Callable[[Path], object]
GOOD: dict[str, Damage] = {
    "celeba": originals.celeba,
    "svhn": originals.svhn,
    "mnist": originals.mnist,
    "fashion_mnist": originals.mnist,
    "cifar10": originals.cifar10,
    "flowers102": originals.flowers,
    "folder": lambda folder: originals.class_folders(folder, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1}),
}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
ATTRIBUTES, PARTITION, FACES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip"
BATCH, TAR = "cifar-10-batches-py/data_batch_2", "cifar-10-python.tar.gz"
PICTURE = "train/a/001.png"


def options(name: str, source: Path, out: Path) -> list[str]:
    size = {"celeba": ["--size", "8"], "folder": ["--size", "8"], "flowers102": ["--size", "8"]}.get(name, [])
    return [name, "--source", str(source), "--out", str(out), "--workers", "1", *size]


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """name → a folder with good originals in `in`, and the splits made from them in `out`; made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            GOOD[name](made[name] / "in")
            assert main(options(name, made[name] / "in", made[name] / "out")) == 0
        return made[name]

    yield make


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


# Damage: each a function of the folder with the originals.


def write(name: str, content: bytes | str) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, share: float) -> Damage:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def edit(name: str, old: str, new: str) -> Damage:
    def run(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return run


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Removes a file and puts something else in its place."""

    def run(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return run


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def zipped_idx(shape: tuple[int, ...], data: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    return gzip.compress(magic + bytes([len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + data)


def mat(name: str, **variables: Any) -> Damage:
    return lambda folder: savemat(folder / name, variables)


def batch(**entries: Any) -> Damage:
    """A CIFAR batch of four images, some of whose entries are other ones."""
    good = {"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
    content = {k.encode(): v for k, v in {**good, **entries}.items() if v is not None}
    return write(BATCH, pickle.dumps(content, protocol=3))


def encode_bomb(times: int) -> bytes:
    """A pickle of 1 MB whose one string becomes `times` objects."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\1"
    head = b"\x80\2c_codecs\nencode\nq\0" + text + b"X\6\0\0\0latin1q\2]("
    return head + b"h\0h\1h\2\x86R" * times + b"e."


def tarred(change: Callable[[tarfile.TarFile, tarfile.TarInfo, bytes], object]) -> Damage:
    """The CIFAR archive, whose member data_batch_2 `change` writes."""

    def run(folder: Path) -> None:
        batches = folder / cifar10.FOLDER
        with tarfile.open(folder / TAR, "w:gz") as tar:
            for file in sorted(batches.iterdir()):
                info = tar.gettarinfo(str(file), f"{cifar10.FOLDER}/{file.name}")
                if file.name == "data_batch_2":
                    change(tar, info, file.read_bytes())
                else:
                    tar.addfile(info, io.BytesIO(file.read_bytes()))
        shutil.rmtree(batches)

    return run


def tar_type(kind: bytes, link: str = "") -> Damage:
    def change(tar: tarfile.TarFile, info: tarfile.TarInfo, content: bytes) -> None:
        info.type, info.linkname, info.size = kind, link, 0
        tar.addfile(info)

    return tarred(change)


def tar_twice(tar: tarfile.TarFile, info: tarfile.TarInfo, content: bytes) -> None:
    tar.addfile(info, io.BytesIO(content))
    tar.addfile(info, io.BytesIO(content))


def tar_elsewhere(prefix: str) -> Damage:
    def change(tar: tarfile.TarFile, info: tarfile.TarInfo, content: bytes) -> None:
        info.name = prefix + info.name
        tar.addfile(info, io.BytesIO(content))

    return tarred(change)


def png(*size: int, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size[0], size[1])).save(stream, "PNG")
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header has other dimensions, with the right checksum."""
    whole = bytearray(png(4, 4))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


def jpeg_claiming(width: int, height: int) -> bytes:
    whole = bytearray(originals.jpeg(np.zeros((8, 8, 3), dtype=np.uint8)))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def animated(kind: str) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def archive(change: Callable[[zipfile.ZipFile], object]) -> Damage:
    """Puts the tree into in/images.zip, with what `change` adds."""

    def run(folder: Path) -> None:
        pictures = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jpg")}
        shutil.rmtree(folder)
        folder.mkdir()
        with zipfile.ZipFile(folder / "images.zip", "w") as z:
            for member, content in pictures.items():
                z.writestr(member, content)
            change(z)

    return run


def member(name: str, content: bytes = b"", pack: int = zipfile.ZIP_STORED) -> Damage:
    return archive(lambda z: z.writestr(name, content or png(8, 8), pack))


def patched_member(offset: int, central: int, value: bytes) -> Damage:
    """Overwrites a field in the last member's local header and in its entry of the central directory."""

    def run(folder: Path) -> None:
        member("train/b/zz.png")(folder)
        file = folder / "images.zip"
        whole = bytearray(file.read_bytes())
        for signature, at in ((b"PK\3\4", offset), (b"PK\1\2", central)):
            begin = whole.rindex(signature) + at
            whole[begin : begin + len(value)] = value
        file.write_bytes(whole)

    return run


def damaged_stream(folder: Path) -> None:
    member("train/b/zz.png", png(8, 8), zipfile.ZIP_DEFLATED)(folder)
    file = folder / "images.zip"
    whole = bytearray(file.read_bytes())
    begin = whole.rindex(b"PK\3\4") + 30 + len("train/b/zz.png")
    whole[begin : begin + 8] = b"\xff" * 8
    file.write_bytes(whole)


def undecodable_member(folder: Path) -> None:
    """A member's name that claims to be UTF-8 and is not."""
    member("train/b/zzé.png")(folder)
    file = folder / "images.zip"
    file.write_bytes(file.read_bytes().replace("é".encode(), b"\xff\xfe"))


def twice_in_zip(folder: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(lambda z: [z.writestr("train/b/zz.png", png(8, 8)) for _ in range(2)])(folder)


def faces_twice(folder: Path) -> None:
    with zipfile.ZipFile(folder / FACES, "a") as z:
        z.writestr("copy/000003.jpg", png(8, 8))


def odd_name(name: bytes) -> Damage:
    return lambda folder: Path(os.fsdecode(os.fsencode(folder / "train" / "a") + b"/" + name)).write_bytes(png(8, 8))


def mat_claiming(dimensions: tuple[int, int], file: str) -> Damage:
    """labels with other dimensions than data."""

    def run(folder: Path) -> None:
        savemat(folder / file, {"labels": np.arange(1, 13, dtype=np.uint8)[None]})
        whole = (folder / file).read_bytes()
        good = struct.pack("<ii", 1, 12)
        assert good in whole
        (folder / file).write_bytes(whole.replace(good, struct.pack("<ii", *dimensions), 1))

    return run


def only_text(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as z:
        z.writestr("a.txt", "no image")


X, Y = np.zeros((32, 32, 3, 4), dtype=np.uint8), np.array([[1], [2], [3], [10]], dtype=np.uint8)
HDF5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(600)
SETS = {"trnid": np.arange(1, 5), "valid": np.arange(5, 9), "tstid": np.arange(9, 13)}
HOSTILE: list[tuple[str, str, str, Damage]] = [  # data set, what is wrong, the name in the message, how to make it
    *[("mnist", f"images cut to {s:.1%}", TRAIN_IMAGES, cut(TRAIN_IMAGES, s)) for s in (0.01, 0.3, 0.999)],
    ("mnist", "images of 0 bytes", TRAIN_IMAGES, write(TRAIN_IMAGES, b"")),
    ("mnist", "labels are a web page", TRAIN_LABELS, write(TRAIN_LABELS, "<html>quota exceeded</html>")),
    ("mnist", "wrong magic", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(25), b"\1\0\x08"))),
    ("mnist", "floats", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(100), b"\0\0\x0d"))),
    ("mnist", "header of 3 bytes", TRAIN_LABELS, write(TRAIN_LABELS, gzip.compress(b"\0\0\x08"))),
    ("mnist", "255 axes", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((1,) * 255, b"x"))),
    ("mnist", "no axis", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((), b"x"))),
    ("mnist", "labels of 3 axes", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25, 1, 1), bytes(25)))),
    ("mnist", "shape overflow", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((1 << 31, 1 << 31, 4), b""))),
    ("mnist", "0 of huge images", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((0, 1 << 31, 1 << 31), b""))),
    ("mnist", "0x0 images", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((25, 0, 0), b""))),
    ("mnist", "0 images", TRAIN_IMAGES, write(TRAIN_IMAGES, zipped_idx((0, 28, 28), b""))),
    ("mnist", "more than promised", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(26)))),
    ("mnist", "less than promised", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(24)))),
    ("mnist", "fewer labels", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((24,), bytes(24)))),
    ("mnist", "label 10", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(24) + b"\x0a"))),
    ("mnist", "bad checksum", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((9,), bytes(9))[:-8] + bytes(8))),
    ("mnist", "garbage behind gzip", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(25)) + b"garbage")),
    ("mnist", "pipe", TRAIN_LABELS, instead(TRAIN_LABELS, os.mkfifo)),
    ("mnist", "folder", TRAIN_LABELS, instead(TRAIN_LABELS, Path.mkdir)),
    ("mnist", "link to nothing", TRAIN_LABELS, instead(TRAIN_LABELS, link_to("nowhere"))),
    ("mnist", "link to a device", TRAIN_LABELS, instead(TRAIN_LABELS, link_to("/dev/zero"))),
    ("fashion_mnist", "label 200", TRAIN_LABELS, write(TRAIN_LABELS, zipped_idx((25,), bytes(24) + b"\xc8"))),
    ("fashion_mnist", "images cut", TRAIN_IMAGES, cut(TRAIN_IMAGES, 0.5)),
    *[("svhn", f"cut to {s:.1%}", "train_32x32.mat", cut("train_32x32.mat", s)) for s in (0.0, 0.002, 0.5, 0.999)],
    ("svhn", "text", "extra_32x32.mat", write("extra_32x32.mat", "not found " * 40)),
    ("svhn", "v7.3", "extra_32x32.mat", write("extra_32x32.mat", HDF5)),
    ("svhn", "no y", "test_32x32.mat", mat("test_32x32.mat", X=X)),
    ("svhn", "no variables", "test_32x32.mat", mat("test_32x32.mat")),
    ("svhn", "empty", "test_32x32.mat", mat("test_32x32.mat", X=X[..., :0], y=Y[:0])),
    ("svhn", "0x0 images", "test_32x32.mat", mat("test_32x32.mat", X=X[:0, :0], y=Y)),
    ("svhn", "N first", "test_32x32.mat", mat("test_32x32.mat", X=X.transpose(3, 0, 1, 2), y=Y)),
    ("svhn", "channels first", "test_32x32.mat", mat("test_32x32.mat", X=X.transpose(2, 0, 1, 3), y=Y)),
    ("svhn", "grey", "test_32x32.mat", mat("test_32x32.mat", X=X[:, :, 0], y=Y)),
    ("svhn", "float pixels", "test_32x32.mat", mat("test_32x32.mat", X=X / 255, y=Y)),
    ("svhn", "fewer labels", "test_32x32.mat", mat("test_32x32.mat", X=X, y=Y[:3])),
    ("svhn", "label 0", "test_32x32.mat", mat("test_32x32.mat", X=X, y=Y % 10)),
    ("svhn", "label 11", "test_32x32.mat", mat("test_32x32.mat", X=X, y=Y + 1)),
    ("svhn", "negative label", "test_32x32.mat", mat("test_32x32.mat", X=X, y=Y.astype(np.int16) - 5)),
    ("svhn", "label NaN", "test_32x32.mat", mat("test_32x32.mat", X=X, y=np.where(Y == 2, np.nan, Y))),
    ("svhn", "label 1.5", "test_32x32.mat", mat("test_32x32.mat", X=X, y=np.where(Y == 2, 1.5, Y))),
    ("svhn", "labels are words", "test_32x32.mat", mat("test_32x32.mat", X=X, y=np.array(["a", "b", "c", "d"]))),
    ("svhn", "labels are cells", "test_32x32.mat", mat("test_32x32.mat", X=X, y=np.array([[1, "a"]], dtype=object))),
    ("svhn", "extra of another size", "extra_32x32.mat", mat("extra_32x32.mat", X=X[:16, :16], y=Y)),
    ("svhn", "pipe", "extra_32x32.mat", instead("extra_32x32.mat", os.mkfifo)),
    *[("cifar10", f"batch cut to {s:.1%}", "data_batch_2", cut(BATCH, s)) for s in (0.0, 0.1, 0.999)],
    ("cifar10", "text", "data_batch_2", write(BATCH, "404")),
    ("cifar10", "no pickled dict", "data_batch_2", write(BATCH, pickle.dumps([1, 2]))),
    ("cifar10", "calls a function", "data_batch_2", write(BATCH, pickle.dumps(print))),
    ("cifar10", "encodes for ever", "data_batch_2", write(BATCH, encode_bomb(100))),
    ("cifar10", "no data", "data_batch_2", batch(data=None)),
    ("cifar10", "no labels", "data_batch_2", batch(labels=None)),
    ("cifar10", "0 images", "data_batch_2", batch(data=np.zeros((0, 3072), dtype=np.uint8), labels=[])),
    ("cifar10", "16x16", "data_batch_2", batch(data=np.zeros((4, 768), dtype=np.uint8))),
    ("cifar10", "odd row length", "data_batch_2", batch(data=np.zeros((4, 3071), dtype=np.uint8))),
    ("cifar10", "float pixels", "data_batch_2", batch(data=np.zeros((4, 3072)))),
    ("cifar10", "fewer labels", "data_batch_2", batch(labels=[0, 1, 2])),
    ("cifar10", "label 10", "data_batch_2", batch(labels=[0, 1, 2, 10])),
    ("cifar10", "label -1", "data_batch_2", batch(labels=[0, 1, 2, -1])),
    ("cifar10", "label NaN", "data_batch_2", batch(labels=[0, 1, 2, float("nan")])),
    ("cifar10", "label of 100 digits", "data_batch_2", batch(labels=[0, 1, 2, 10**100])),
    ("cifar10", "labels are words", "data_batch_2", batch(labels=["a", "b", "c", "d"])),
    ("cifar10", "missing batch", "data_batch_2", lambda folder: (folder / BATCH).unlink()),
    ("cifar10", "pipe", "data_batch_2", instead(BATCH, os.mkfifo)),
    ("cifar10", "folder", "data_batch_2", instead(BATCH, Path.mkdir)),
    ("cifar10", "folder in the tar", "data_batch_2", tar_type(tarfile.DIRTYPE)),
    ("cifar10", "pipe in the tar", "data_batch_2", tar_type(tarfile.FIFOTYPE)),
    ("cifar10", "link in the tar", "data_batch_2", tar_type(tarfile.SYMTYPE, "/etc/passwd")),
    ("cifar10", "twice in the tar", "data_batch_2", tarred(tar_twice)),
    ("cifar10", "absolute name in the tar", "data_batch_2", tar_elsewhere("/")),
    ("cifar10", "'..' in the tar", "data_batch_2", tar_elsewhere("../")),
    ("cifar10", "no member in the tar", "data_batch_2", tarred(lambda *_: None)),
    ("cifar10", "text as tar", TAR, lambda folder: (tar_type(b"5")(folder), write(TAR, "404")(folder))),
    ("cifar10", "gzip without tar", TAR, lambda f: (tar_type(b"5")(f), write(TAR, gzip.compress(b"x" * 2000))(f))),
    *[
        ("cifar10", f"tar cut to {s:.1%}", TAR, lambda f, s=s: (tarred(tar_twice)(f), cut(TAR, s)(f)))
        for s in (0.01, 0.6, 0.999)
    ],
    *[("celeba", f"zip cut to {s:.1%}", FACES, cut(FACES, s)) for s in (0.0, 0.5, 0.999)],
    ("celeba", "text as zip", FACES, write(FACES, "quota exceeded")),
    ("celeba", "pipe as zip", FACES, instead(FACES, os.mkfifo)),
    ("celeba", "same face in two folders", "000003.jpg", faces_twice),
    ("celeba", "attributes not UTF-8", ATTRIBUTES, write(ATTRIBUTES, b"1\nMale\n\xff.jpg 1\n")),
    ("celeba", "attributes of 0 bytes", ATTRIBUTES, write(ATTRIBUTES, b"")),
    ("celeba", "wrong count", ATTRIBUTES, edit(ATTRIBUTES, "12\n", "13\n")),
    ("celeba", "count is no number", ATTRIBUTES, edit(ATTRIBUTES, "12\n", "²\n")),
    ("celeba", "count of 5,000 digits", ATTRIBUTES, edit(ATTRIBUTES, "12\n", "1" * 5000 + "\n")),
    ("celeba", "missing column", ATTRIBUTES, edit(ATTRIBUTES, " Young", "")),
    ("celeba", "extra column", ATTRIBUTES, edit(ATTRIBUTES, " Young", " Young Old")),
    ("celeba", "column twice", ATTRIBUTES, edit(ATTRIBUTES, " Young", " Male")),
    ("celeba", "attribute 0", ATTRIBUTES, edit(ATTRIBUTES, " -1 ", " 0 ")),
    ("celeba", "attribute NaN", ATTRIBUTES, edit(ATTRIBUTES, " -1 ", " nan ")),
    ("celeba", "row twice", ATTRIBUTES, edit(ATTRIBUTES, "000004.jpg", "000003.jpg")),
    ("celeba", "partition 3", PARTITION, edit(PARTITION, "000003.jpg 0", "000003.jpg 3")),
    ("celeba", "partition -1", PARTITION, edit(PARTITION, "000003.jpg 0", "000003.jpg -1")),
    ("celeba", "partition without number", PARTITION, edit(PARTITION, "000003.jpg 0", "000003.jpg")),
    ("celeba", "partition row twice", PARTITION, edit(PARTITION, "000003.jpg 0", "000002.jpg 1")),
    ("celeba", "partition not UTF-8", PARTITION, write(PARTITION, b"\xff\xfe0\x000\x00")),
    ("celeba", "partition is a pipe", PARTITION, instead(PARTITION, os.mkfifo)),
    ("flowers102", "labels cut", "imagelabels.mat", cut("imagelabels.mat", 0.5)),
    ("flowers102", "labels of 0 bytes", "imagelabels.mat", write("imagelabels.mat", b"")),
    ("flowers102", "label 0", "imagelabels.mat", mat("imagelabels.mat", labels=np.arange(12))),
    ("flowers102", "label 103", "imagelabels.mat", mat("imagelabels.mat", labels=np.arange(92, 104))),
    ("flowers102", "label NaN", "imagelabels.mat", mat("imagelabels.mat", labels=np.full(12, np.nan))),
    ("flowers102", "fewer labels", "imagelabels.mat", mat("imagelabels.mat", labels=np.ones(11))),
    ("flowers102", "empty labels", "imagelabels.mat", mat("imagelabels.mat", labels=np.ones(0))),
    ("flowers102", "sparse dimensions", "imagelabels.mat", mat_claiming((1 << 30, 2), "imagelabels.mat")),
    ("flowers102", "negative dimensions", "imagelabels.mat", mat_claiming((-1, -12), "imagelabels.mat")),
    ("flowers102", "no valid", "setid.mat", mat("setid.mat", trnid=np.arange(1, 7), tstid=np.arange(7, 13))),
    ("flowers102", "empty set", "setid.mat", mat("setid.mat", **{**SETS, "valid": np.ones(0)})),
    ("flowers102", "image 0", "setid.mat", mat("setid.mat", **{**SETS, "trnid": np.arange(5)})),
    ("flowers102", "image 13", "setid.mat", mat("setid.mat", **{**SETS, "tstid": np.arange(9, 14)})),
    ("flowers102", "image in two sets", "setid.mat", mat("setid.mat", **{**SETS, "tstid": np.arange(8, 13)})),
    (
        "flowers102",
        "other numbering",
        "image_00001.jpg",
        lambda f: (f / "jpg/image_00001.jpg").rename(f / "jpg/z.jpg"),
    ),
    ("flowers102", "captions not UTF-8", "image_00003.txt", write("text_c10/class_00001/image_00003.txt", b"\xff\n")),
    ("flowers102", "captions of 0 bytes", "image_00003.jpg", write("text_c10/class_00001/image_00003.txt", b"")),
    ("flowers102", "captions twice", "image_00003.txt", write("text_c10/class_00002/image_00003.txt", b"a\n")),
    ("flowers102", "captions are a pipe", "image_x.txt", lambda f: os.mkfifo(f / "text_c10" / "image_x.txt")),
    ("folder", "0 bytes", PICTURE, write(PICTURE, b"")),
    ("folder", "text", PICTURE, write(PICTURE, "<html>")),
    ("folder", "16 bits", PICTURE, write(PICTURE, png(8, 8, mode="I;16"))),
    ("folder", "PNG of 60,000²", PICTURE, write(PICTURE, png_claiming(60_000, 60_000))),
    ("folder", "PNG of 9,000²", PICTURE, write(PICTURE, png_claiming(9_000, 9_000))),
    ("folder", "PNG of 2³¹-1", PICTURE, write(PICTURE, png_claiming((1 << 31) - 1, (1 << 31) - 1))),
    ("folder", "PNG of 0x0", PICTURE, write(PICTURE, png_claiming(0, 0))),
    ("folder", "PNG larger than its data", PICTURE, write(PICTURE, png_claiming(8, 8))),
    ("folder", "JPEG of 65,000²", PICTURE, write(PICTURE, jpeg_claiming(65_000, 65_000))),
    ("folder", "JPEG of 0x0", PICTURE, write(PICTURE, jpeg_claiming(0, 0))),
    *[("folder", f"animated {k}", PICTURE, write(PICTURE, animated(k))) for k in ("GIF", "PNG", "WEBP")],
    *[("folder", f"{k} renamed", PICTURE, write(PICTURE, encoded(k))) for k in ("EPS", "TIFF", "PPM")],
    *[("folder", f"PNG cut to {s} bytes", PICTURE, write(PICTURE, png(8, 8)[:s])) for s in (4, 20, 45)],
    ("folder", "pipe", PICTURE, instead(PICTURE, os.mkfifo)),
    ("folder", "link to nothing", PICTURE, instead(PICTURE, link_to("nowhere.png"))),
    ("folder", "link to itself", PICTURE, instead(PICTURE, link_to("001.png"))),
    ("folder", "link out of the folder", PICTURE, instead(PICTURE, link_to("/etc/passwd"))),
    ("folder", "linked class folder", "train/c", instead("train/c", link_to("/usr"))),
    ("folder", "name not UTF-8", "\\udcff.png", odd_name(b"\xff.png")),
    ("folder", "name of two lines", "a\\nb.png", odd_name(b"a\nb.png")),
    ("folder", "too deep", "train/a/x/y.png", lambda f: ((f / "train/a/x").mkdir(), (f / "train/a/x/y.png").touch())),
    ("folder", "no images", "/in", lambda f: (shutil.rmtree(f / "train"), shutil.rmtree(f / "test"))),
    ("folder", "no folder", "/in", shutil.rmtree),
    ("folder", "zip: encrypted", "zz.png", patched_member(6, 8, b"\1\0")),
    ("folder", "zip: unknown method", "zz.png", patched_member(8, 10, b"\x63\0")),
    ("folder", "zip: wrong checksum", "zz.png", patched_member(14, 16, b"\1\2\3\4")),
    ("folder", "zip: damaged local header", "zz.png", patched_member(0, 46, b"trai")),
    ("folder", "zip: damaged deflate stream", "zz.png", damaged_stream),
    ("folder", "zip: promises 2 GB", "zz.png", patched_member(22, 24, struct.pack("<I", (1 << 31) - 1))),
    ("folder", "zip: name not UTF-8", "images.zip", undecodable_member),
    ("folder", "zip: absolute name", "/train/b/zz.png", member("/train/b/zz.png")),
    ("folder", "zip: '..' in a name", "../b/zz.png", member("../b/zz.png")),
    ("folder", "zip: name of two lines", "z\\nz.png", member("train/b/z\nz.png")),
    ("folder", "zip: name of 60,000 digits", "11111", member("train/" + "1" * 60_000 + "/zz.png")),
    ("folder", "zip: name twice", "train/b/zz.png", twice_in_zip),
    ("folder", "zip: link out", "train/b/zz.png", member("train/b/zz.png", b"/etc/passwd")),
    ("folder", "zip: no images", "images.zip", only_text),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "file", "damage"), [pytest.param(n, f, d, id=f"{n}: {what}") for n, what, f, d in HOSTILE]
)
def test_a_hostile_original_is_refused_by_name(
    earlier: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    file: str,
    damage: Damage,
) -> None:
    source, out = (Path(shutil.copytree(earlier(name) / part, tmp_path / part)) for part in ("in", "out"))
    damage(source)
    assert file in refused(capsys, name, source, out)
    assert not list(out.glob("*.incomplete/manifest.json"))


def test_a_hostile_original_is_refused_by_the_command_itself(earlier: Callable[[str], Path], tmp_path: Path) -> None:
    for name, damage, file in [
        ("mnist", instead(TRAIN_LABELS, os.mkfifo), TRAIN_LABELS),
        ("folder", odd_name(b"\xff.png"), "udcff.png"),
        ("folder", patched_member(6, 8, b"\1\0"), "zz.png"),
    ]:
        source = Path(shutil.copytree(earlier(name) / "in", tmp_path / file))
        damage(source)
        command = [sys.executable, "-m", "data_prep", *options(name, source, tmp_path / "out")]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 2 and file in one_line(run.stderr)
        assert not list(tmp_path.glob("out/*/manifest.json"))


def test_an_unreadable_file_is_named(
    earlier: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    for name, file in (("mnist", TRAIN_LABELS), ("celeba", FACES), ("cifar10", BATCH), ("folder", "train/a")):
        source = Path(shutil.copytree(earlier(name) / "in", tmp_path / name))
        (source / file).chmod(0)
        assert Path(file).name in refused(capsys, name, source, tmp_path / "out")
        (source / file).chmod(0o700)


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
        assert np.array_equal(train.images[..., 0], wide[:, :, 4:24])


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
    for name, image in zip(
        sorted(p.name for p in source.iterdir()), open_split(tmp_path / "out/train").images, strict=True
    ):
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
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2 and "a worker process was killed" in one_line(errors)
    assert manifests(out) == before and main(["verify", str(out / "train")]) == 0
    assert main(options("folder", source, out)) == 0
    assert len(open_split(out / "train")) == 120 and not list(out.glob("*.incomplete"))


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
