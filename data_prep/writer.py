"""Writes one split atomically: pixels, the arrays beside them, the other formats, the manifest, then one rename.

Everything is made in <split>.incomplete; the same command continues there after a kill.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.beton import write_jpg, write_raw
from data_prep.images import software
from data_prep.pixels import CHUNK, JOURNAL, drop_rows, read_pixels
from data_prep.source import Pixels, Source, SourceError
from data_prep.tar import write_tar
from dtrain.data.checksums import row_checksums
from dtrain.data.shards import FORMAT_VERSION, MANIFEST, ShardError, manifest_digest, read_manifest
from dtrain.files import sha256

# what each format takes on disk, in bytes per byte of pixels, at most
FORMATS = {"npy": 1.0, "beton": 1.0, "jpg": 1.0, "tar": 1.2}


def _work(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")


def _check_disk(source: Source, out: Path, formats: Iterable[str]) -> None:
    pixels = len(source) * math.prod(source.shape)
    need = int(pixels * sum(FORMATS[f] for f in formats)) + sum(a.nbytes for a in source.arrays.values())
    free = shutil.disk_usage(out).free
    if need > free:
        raise SourceError(
            f"{out} has {free / 1e9:.1f} GB free, {len(source)} images of {source.shape} as {', '.join(formats)} "
            f"may take {need / 1e9:.1f} GB: free some, choose another --out, fewer --formats or a smaller --size"
        )


def _check_target(path: Path) -> None:
    """Only an earlier split may be replaced: whoever gives the originals' folder as --out must not lose them."""
    entries = list(path.iterdir()) if path.is_dir() else []
    is_split = any(f.name in (MANIFEST, "images.npy") for f in entries)
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (entries and not is_split):
        raise SourceError(f"{path} would be replaced, but is no prepared split: choose another --out, or move it")


def _key(source: Source, formats: list[str]) -> dict[str, Any]:
    """What a split is made from: with the same key the same bytes come out."""
    about = {**source.about, "software": software(), "samples": len(source), "image_shape": list(source.shape)}
    names = hashlib.sha256("\n".join(source.names).encode()).hexdigest()
    key = {"format_version": FORMAT_VERSION, "source": about, "names": names, "formats": formats}
    if source.captions is not None:
        key["captions"] = hashlib.sha256(json.dumps(list(map(list, source.captions))).encode()).hexdigest()
    return key


def is_written(path: Path, source: Source, formats: list[str], skip_broken: bool) -> bool:
    """Whether the split lies there already, made from the same files in the same way."""
    try:
        manifest = read_manifest(path)
    except ShardError:
        return False
    same = all(manifest.get(k) == v for k, v in _key(source, formats).items())
    return same and (skip_broken or not manifest["left_out"])


def write_split(
    path: Path,
    source: Source,
    formats: Iterable[str] = ("npy",),
    workers: int = 1,
    skip_broken: bool = False,
) -> None:
    """Writes `source` to the folder `path`. Raises SourceError for bad input, and leaves `path` as it was then."""
    publish(path, make_split(path, source, formats, workers, skip_broken))


def make_split(path: Path, source: Source, formats: Iterable[str], workers: int, skip_broken: bool) -> dict[str, Any]:
    """All of `write_split` but putting the split in its place. Returns the manifest, for `publish`."""
    formats = ["npy", *(f for f in FORMATS if f in formats and f != "npy")]
    if "jpg" in formats and source.shape[2] != 3:
        raise SourceError(f"format jpg holds colour images, {path} would have grey ones: leave jpg out")
    _check_target(path)
    key = _key(source, formats)
    work = _work(path)
    work.mkdir(parents=True, exist_ok=True)
    _check_disk(source, work, formats)
    pixels_key = hashlib.sha256(json.dumps({**key, "formats": None}, sort_keys=True).encode()).hexdigest()
    broken = read_pixels(source, work, pixels_key, workers, skip_broken)
    keep = drop_rows(work / "images.npy", broken)
    if not len(keep):
        raise SourceError(f"{path}: not one of its {len(source)} samples can be used")
    tables = _write_rest(work, source, keep, formats)
    left_out = [{"sample": source.names[i], "why": broken[i]} for i in sorted(broken)]
    manifest = {**key, "count": len(keep), "image_shape": list(source.shape), "left_out": left_out}
    manifest["files"] = {
        f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(work.iterdir()) if f.name != JOURNAL
    }
    for name, entry in tables.items():
        manifest["files"][name]["tables"] = entry
    return {**manifest, "sha256": manifest_digest(manifest)}


def _checksums(images: Pixels) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.concatenate([row_checksums(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)])


def _write_rest(work: Path, source: Source, keep: np.ndarray[Any, Any], formats: list[str]) -> dict[str, Any]:
    """All files but the pixels and the manifest. Returns the manifest's entries about .beton tables."""
    for file in work.iterdir():
        if file.name not in ("images.npy", JOURNAL):  # of an interrupted run
            file.unlink()
    images = np.load(work / "images.npy", mmap_mode="r")
    np.save(work / "checksums.npy", _checksums(images))
    arrays = {name: a[keep] for name, a in source.arrays.items()}
    for name, array in arrays.items():
        np.save(work / f"{name}.npy", array)
    if source.captions is not None:
        captions = [source.captions[i] for i in keep]
        (work / "captions.json").write_text(json.dumps(captions, ensure_ascii=False) + "\n")
    tables = {}
    if "beton" in formats:
        tables["raw.beton"] = write_raw(work / "raw.beton", images)
    if "jpg" in formats:
        tables["jpg.beton"] = write_jpg(work / "jpg.beton", images)
    if "tar" in formats:
        write_tar(work / "images.tar", images, arrays)
    return tables


def publish(path: Path, manifest: dict[str, Any]) -> None:
    """Puts a split that `make_split` has made in its place."""
    work = _work(path)
    (work / JOURNAL).unlink()
    with (work / MANIFEST).open("w") as f:
        f.write(json.dumps(manifest, indent=1) + "\n")
    for file in work.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
    shutil.rmtree(path, ignore_errors=True)
    os.replace(work, path)
