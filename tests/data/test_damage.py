"""Damaged shards: an error that names file and sample; never a hang, a crash, or a wrong image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.build import build_loader
from dtrain.data.checksums import row_checksums
from dtrain.data.shards import ShardError, open_split
from tests.data.backends import backends, needs

DAMAGED = 77  # sample number


def flip_byte(file: Path, at: int) -> None:
    with file.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


def read_all(path: Path, options: dict[str, Any]) -> list[int]:
    loader = build_loader(split=open_split(path), batch_size=16, value_range=(0.0, 1.0), **options)
    return [len(batch) for batch in loader.once()]


def data_offset(split: Path, name: str) -> int:
    """Where sample DAMAGED lies in a file of the colour shards."""
    row = 12 * 12 * 3
    if name == "images.npy":
        return (split / name).stat().st_size - (203 - DAMAGED) * row + 5
    if name == "raw.beton":
        start = json.loads((split / "manifest.json").read_text())["files"][name]["tables"]["data"][0]
        return int(start) + DAMAGED * row + 5
    return int(np.load(split / f"{name}.index.npy")[DAMAGED, 0]) + 20


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("images.npy", {"name": "resident"}),
        ("images.npy", {"name": "resident", "memory_map": True}),
        pytest.param("images.npy", {"name": "dali"}, marks=needs("nvidia.dali")),
        pytest.param("images.tar", {"name": "dali", "source": "tar"}, marks=needs("nvidia.dali")),
        pytest.param("raw.beton", {"name": "ffcv"}, marks=needs("ffcv")),
        pytest.param("jpg.beton", {"name": "ffcv", "encoding": "jpg"}, marks=needs("ffcv")),
    ],
)
def test_a_flipped_byte_in_the_data_names_file_and_sample(own_copy: Path, name: str, options: dict[str, Any]) -> None:
    flip_byte(own_copy / name, data_offset(own_copy, name))
    with pytest.raises(ShardError, match=rf"{name} is damaged: sample {DAMAGED} .* prepare the shards again"):
        read_all(own_copy, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("images.npy", {"name": "resident"}),
        ("labels.npy", {"name": "resident"}),
        pytest.param("images.tar", {"name": "dali", "source": "tar"}, marks=needs("nvidia.dali")),
        pytest.param("raw.beton", {"name": "ffcv"}, marks=needs("ffcv")),
        pytest.param("jpg.beton", {"name": "ffcv", "encoding": "jpg"}, marks=needs("ffcv")),
    ],
)
@pytest.mark.parametrize("cut", [lambda size: 0, lambda size: size // 2, lambda size: size * 999 // 1000])
def test_a_truncated_file_is_named(
    own_copy: Path, name: str, options: dict[str, Any], cut: Callable[[int], int]
) -> None:
    size = (own_copy / name).stat().st_size
    with (own_copy / name).open("r+b") as f:
        f.truncate(cut(size))
    with pytest.raises(ShardError, match=rf"{name} has {cut(size)} bytes, the manifest says {size}"):
        read_all(own_copy, options)


@needs("ffcv")
@pytest.mark.parametrize("encoding", ["raw", "jpg"])
def test_every_pointer_of_a_beton_is_checked_before_ffcv_follows_it(own_copy: Path, encoding: str) -> None:
    name = f"{encoding}.beton"
    size = (own_copy / name).stat().st_size
    for at in (0, 5, 9, 17, 40, 1100, 2000, size - 8, size - 16, size - 2000):
        flip_byte(own_copy / name, at)
        with pytest.raises(ShardError, match=f"{name} is damaged: its header or tables"):
            read_all(own_copy, {"name": "ffcv", "encoding": encoding})
        flip_byte(own_copy / name, at)
    assert sum(read_all(own_copy, {"name": "ffcv", "encoding": encoding})) == 203


@pytest.mark.parametrize("name", ["labels.npy", "attributes.npy", "embeddings.npy", "checksums.npy"])
def test_a_flipped_byte_in_what_travels_with_the_images_is_named(own_copy: Path, name: str) -> None:
    flip_byte(own_copy / name, (own_copy / name).stat().st_size - 3)
    with pytest.raises(ShardError, match=f"{name} is damaged"):
        open_split(own_copy)


def test_no_flipped_byte_in_the_header_of_the_images_goes_unnoticed(own_copy: Path) -> None:
    file = own_copy / "images.npy"
    whole = file.read_bytes()
    header = whole.index(b"}") + 1
    images = np.array(open_split(own_copy).images)
    for at in range(header):
        flip_byte(file, at)
        try:
            split = open_split(own_copy)
        except ShardError as e:
            assert "images.npy" in str(e)
        else:  # a byte that means nothing, such as a space
            assert np.array_equal(split.images, images)
        file.write_bytes(whole)


def test_a_damaged_manifest_is_refused(own_copy: Path) -> None:
    flip_byte(own_copy / "manifest.json", 60)
    with pytest.raises(ShardError, match=r"manifest.json is damaged"):
        open_split(own_copy)


def test_a_missing_split_and_a_missing_format_say_what_to_do(own_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no shards in .*nowhere: manifest.json is missing"):
        open_split(tmp_path / "nowhere")
    manifest = open_split(own_copy)
    with pytest.raises(ShardError, match="prepare the shards again with tar among --formats"):
        manifest.file("other.tar", "tar")


@backends("ffcv", "dali", "mapped")
def test_an_error_in_one_stream_leaves_the_loader_usable(own_copy: Path, options: dict[str, Any]) -> None:
    name = "raw.beton" if options["name"] == "ffcv" else "images.npy"
    flip_byte(own_copy / name, data_offset(own_copy, name))
    loader = build_loader(split=open_split(own_copy), batch_size=16, value_range=(0.0, 1.0), **options)
    with pytest.raises(ShardError):
        list(loader.once())
    assert len(next(loader.once())) == 15  # the first batch holds no damaged sample


@given(
    row=st.binary(min_size=1, max_size=100), at=st.integers(0, 99), change=st.integers(1, 255), pad=st.integers(0, 9)
)
def test_any_changed_byte_changes_the_checksum(row: bytes, at: int, change: int, pad: int) -> None:
    rows = np.frombuffer(row + bytes(pad), dtype=np.uint8)[None].copy()
    before = row_checksums(rows)
    rows[0, at % rows.shape[1]] ^= change
    assert row_checksums(rows) != before


def test_checksums_see_rows_that_changed_places() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    shifted = np.roll(rows, 1, axis=2)
    assert (row_checksums(rows) != row_checksums(shifted)).all()
    assert row_checksums(rows)[0] != row_checksums(rows)[1]
