"""Writes small archives in the exact layouts that the data sets' own sites distribute."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

ATTRIBUTES = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def face(number: int, width: int = 178, height: int = 218) -> npt.NDArray[np.uint8]:
    """Red bands above and below the centred square; inside it, a flat shade of green that tells the number."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    top = (height - width) // 2
    pixels[top : top + width] = (0, 40 + 10 * (number % 20), 0)
    return pixels


def face_attributes(number: int) -> npt.NDArray[np.int64]:
    return np.where(np.random.default_rng(number).random(40) < 0.5, 1, -1)


def celeba(folder: Path, count: int = 12, width: int = 178, height: int = 218, zipped: bool = True) -> Path:
    """Faces 1 .. count; every fourth is a validation image, every sixth a test image."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    images = {f"img_align_celeba/{name}": jpeg(face(i, width, height)) for i, name in enumerate(names, 1)}
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as z:
            for member, content in images.items():
                z.writestr(member, content)
    else:
        (folder / "img_align_celeba").mkdir()
        for member, content in images.items():
            (folder / member).write_bytes(content)
    rows = [f"{n} " + " ".join(f"{v:2d}" for v in face_attributes(i)) + " " for i, n in enumerate(names, 1)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTES) + " ", *rows]) + "\n")
    parts = [f"{n} {2 if i % 6 == 0 else 1 if i % 4 == 0 else 0}" for i, n in enumerate(names, 1)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return folder


def svhn(folder: Path, compressed: bool = True) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """The three .mat files, X [32, 32, 3, N] and y [N, 1] in 1..10. Returns images [N, 32, 32, 3] and y."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, made = np.random.default_rng(0), {}
    for part, count in (("train", 15), ("extra", 11), ("test", 10)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count) % 10 + 1
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)}
        savemat(folder / f"{part}_32x32.mat", content, do_compression=compressed)
        made[part] = (images, labels)
    return made


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def mnist(folder: Path, zipped: bool = True) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """The four idx files, gzipped or not."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, made = np.random.default_rng(1), {}
    for prefix, count in (("train", 25), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            name = f"{prefix}-{kind}-ubyte"
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
        made[prefix] = (images, labels)
    return made


def cifar10(folder: Path, archive: bool = False) -> dict[str, tuple[npt.NDArray[np.uint8], list[int]]]:
    """Six pickles as Python 2 wrote them (byte-string keys), in their folder or in the .tar.gz."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng, made = np.random.default_rng(2), {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, 4).tolist()
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(4, 3072)
        batch = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * 4}
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
        made[name] = (images, labels)
    if archive:
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(batches, "cifar-10-batches-py")
        for file in batches.iterdir():
            file.unlink()
        batches.rmdir()
    return made


def flowers(folder: Path, count: int = 12, captions: bool = True) -> Path:
    """jpg/image_00001.jpg … of unequal sizes, setid.mat, imagelabels.mat, text_c10; image n is of class n % 3 + 1."""
    (folder / "jpg").mkdir(parents=True)
    labels = [n % 3 + 1 for n in range(1, count + 1)]
    for n, label in enumerate(labels, 1):
        pixels = np.full((60 + n, 80, 3), (10 * n, 20 * label, 100), dtype=np.uint8)
        (folder / "jpg" / f"image_{n:05d}.jpg").write_bytes(jpeg(pixels))
        if captions:
            text = folder / "text_c10" / f"class_{label:05d}" / f"image_{n:05d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(f"caption {k} of flower {n}\n" for k in range(10)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    numbers = np.arange(1, count + 1, dtype=np.uint16)
    sets = {
        "trnid": numbers[numbers % 3 == 1],
        "valid": numbers[numbers % 3 == 2],
        "tstid": numbers[numbers % 3 == 0],
    }
    savemat(folder / "setid.mat", {name: part[None] for name, part in sets.items()})
    return folder


def class_folders(folder: Path, layout: dict[str, int]) -> Path:
    """`layout`: folder of images → how many. Image k of a folder has shade 20 + 10·k."""
    for name, count in layout.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = np.full((20, 30, 3), 20 + 10 * k, dtype=np.uint8)
            (folder / name / f"{k:03d}.jpg").write_bytes(jpeg(pixels))
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as z:
        for path in sorted(folder.rglob("*.*")):
            z.write(path, path.relative_to(folder).as_posix())
    return file
