"""The written files: same bytes for any number of workers, after a kill, and readable by other tools."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import pixels
from data_prep.__main__ import main
from dtrain.data.shards import open_split
from tests.data_prep import originals

ALL = "npy,beton,jpg,tar"


@pytest.fixture(scope="module")
def many_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,300 faces: three chunks of work."""
    return originals.celeba(tmp_path_factory.mktemp("faces"), 1300)


def command(source: Path, out: Path, workers: int = 1) -> list[str]:
    return [
        "celeba",
        "--source",
        str(source),
        "--out",
        str(out),
        "--size",
        "24",
        "--formats",
        ALL,
        "--workers",
        str(workers),
    ]


def hashes(out: Path) -> dict[str, object]:
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("*/manifest.json")}


@pytest.fixture(scope="module")
def undisturbed(many_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main(command(many_faces, out)) == 0
    return out


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    many_faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert main(command(many_faces, tmp_path, workers=3)) == 0
    assert hashes(tmp_path) == hashes(undisturbed)


# python -m data_prep, which notes its workers and kills itself: once the first chunk is in the journal, or all pixels
# are done.
KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep import pixels, writer
from data_prep.__main__ import main

moment, noted, results = sys.argv[1], Path(sys.argv[2]), pixels._results

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def watched(pool, todo):
    for n, result in enumerate(results(pool, todo)):
        noted.write_text(" ".join(map(str, pool._processes)))
        if n and moment == "journaled":
            kill()
        yield result

pixels._results = watched
if moment == "pixels":
    writer.write_raw = kill
main(sys.argv[3:])
"""


@pytest.mark.parametrize("moment", ["journaled", "pixels"])
def test_a_killed_run_continues_to_the_same_bytes(
    many_faces: Path, undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    noted, out = tmp_path / "workers", tmp_path / "out"
    run = [sys.executable, "-c", KILLED, moment, str(noted), *command(many_faces, out)]
    assert subprocess.run(run, stderr=subprocess.PIPE, check=False).returncode == -signal.SIGKILL
    work, workers = out / "train.incomplete", noted.read_text().split()
    assert (work / pixels.JOURNAL).exists() and (work / "checksums.npy").exists() == (moment == "pixels")
    deadline = time.monotonic() + 240
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its killed parent"
        time.sleep(0.01)
    assert main(command(many_faces, out)) == 0
    assert hashes(out) == hashes(undisturbed)
    assert not list(out.glob("*.incomplete"))


def test_a_continued_run_reads_only_what_is_missing(many_faces: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The source's images are gone, but for those of the chunks that the journal does not vouch for."""
    split = open_split(undisturbed / "train")
    work = tmp_path / "train.incomplete"
    work.mkdir()
    images = np.array(split.images)
    images[512:] = 0
    np.save(work / "images.npy", images)

    read = []
    source = main_source(many_faces)
    key = "same"
    digest = pixels._digest(images[:512])
    lines = [{"key": key}, {"chunk": 0, "sha256": digest, "broken": {}}, {"chunk": 1, "sha256": digest, "broken": {}}]
    (work / pixels.JOURNAL).write_text("\n".join(map(json.dumps, lines)) + '\n{"chunk": 2, "sha')
    read = pixels.read_pixels(source, work, key, workers=1, skip_broken=False)
    assert read == {}
    assert np.array_equal(np.load(work / "images.npy"), split.images)


def main_source(folder: Path) -> object:
    from data_prep import celeba

    return celeba.splits(folder, 24)["train"]


def test_the_same_command_again_writes_nothing(many_faces: Path, undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.*")}
    assert main(command(many_faces, undisturbed)) == 0
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.*")} == before


def test_changed_originals_are_prepared_again(tmp_path: Path) -> None:
    tree = originals.class_folders(tmp_path / "in", {"train": 3})
    arguments = ["folder", "--source", str(tree), "--out", str(tmp_path / "out"), "--size", "8"]
    assert main(arguments) == 0
    (tree / "train" / "001.jpg").write_bytes(originals.jpeg(np.full((9, 9, 3), 200, dtype=np.uint8)))
    assert main(arguments) == 0
    assert abs(int(open_split(tmp_path / "out" / "train").images[1].mean()) - 200) < 3


def test_the_tar_is_a_webdataset_with_the_same_pixels(undisturbed: Path) -> None:
    split = open_split(undisturbed / "test")
    with tarfile.open(split.path / "images.tar") as tar:
        names = tar.getnames()
        assert names[:4] == ["00000000.png", "00000000.json", "00000001.png", "00000001.json"]
        for sample in (0, 7, len(split) - 1):
            picture = tar.extractfile(f"{sample:08d}.png")
            about = tar.extractfile(f"{sample:08d}.json")
            assert picture is not None and about is not None
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.read()))), split.images[sample])
            assert json.loads(about.read())["attributes"] == split.arrays["attributes"][sample].tolist()


def test_ffcv_itself_reads_the_betons(undisturbed: Path) -> None:
    ffcv_reader = pytest.importorskip("ffcv.reader")
    split = open_split(undisturbed / "test")
    for name, kind in (("raw.beton", "NDArrayField"), ("jpg.beton", "RGBImageField")):
        reader = ffcv_reader.Reader(str(split.path / name))
        assert reader.num_samples == len(split)
        assert type(reader.handlers["image"]).__name__ == kind
        assert len(reader.alloc_table) == len(split)
        assert int(reader.alloc_table["ptr"].max()) < (split.path / name).stat().st_size


def test_verify_finds_a_flipped_byte_in_every_kind_of_file(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(undisturbed / "test", tmp_path / "copy"))
    assert main(["verify", str(copy)]) == 0
    names = sorted(f.name for f in copy.iterdir())
    assert {"images.npy", "attributes.npy", "raw.beton", "jpg.beton", "images.tar", "manifest.json"} <= set(names)
    for name in names:
        whole = (copy / name).read_bytes()
        for at in (3, len(whole) // 2, len(whole) - 1):
            (copy / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            capsys.readouterr()
            assert main(["verify", str(copy)]) == 1, (name, at)
            assert name in capsys.readouterr().err
        (copy / name).write_bytes(whole)
    assert main(["verify", str(copy)]) == 0


def test_verify_names_samples_and_missing_and_foreign_files(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(undisturbed, tmp_path / "copy"))
    images = np.load(copy / "test" / "images.npy", mmap_mode="r+")
    images[[5, 9], 3, 3, 1] ^= 255
    images.flush()
    (copy / "valid" / "images.tar").unlink()
    (copy / "valid" / "notes.txt").write_text("mine")
    assert main(["verify", str(copy)]) == 1
    report = capsys.readouterr().err
    assert "images.npy is damaged at samples 5, 9" in report
    assert "images.tar is missing" in report and "notes.txt is not in the manifest" in report
    assert main(["verify", str(tmp_path / "nowhere")]) == 2


def test_a_contact_sheet_shows_the_samples(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sheet", str(undisturbed / "train"), "--out", str(tmp_path / "sheet.png")]) == 0
    count = len(open_split(undisturbed / "train"))
    said = f"{tmp_path / 'sheet.png'}: {min(count, 160)} of the {count} images of {undisturbed / 'train'}"
    assert capsys.readouterr().out.splitlines()[-1] == said
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (10 * 48, 16 * 48, 3)
    first = open_split(undisturbed / "train").images[0]
    assert np.array_equal(sheet[:48:2, :48:2], first)


def test_the_manifest_names_the_originals_by_hash(many_faces: Path, undisturbed: Path) -> None:
    import hashlib

    manifest = open_split(undisturbed / "train").manifest
    archive = many_faces / "img_align_celeba.zip"
    entry = manifest["source"]["files"]["img_align_celeba.zip"]
    assert entry == {"bytes": os.path.getsize(archive), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert (
        manifest["source"]["resize"] == "PIL bicubic to 24" and manifest["count"] == len(manifest["left_out"]) + 867
    )
