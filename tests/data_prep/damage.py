"""Damage to originals: each a function of the folder that holds them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep import cifar10
from tests.data_prep import originals
from tests.data_prep.refusing import (
    BATCH,
    FACES,
    TAR,
    Damage,
)


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
