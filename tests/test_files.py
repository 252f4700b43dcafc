"""What becomes of a run's files when the disk is full, or two processes, or other data, meet in its folder."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp

from dtrain import run as runs
from dtrain.checkpoint import CheckpointError, steps, verify
from dtrain.compose import load, read
from dtrain.config import ConfigError
from dtrain.data.shards import manifest_digest
from dtrain.files import append_line, read_lines, sha256
from dtrain.log import Log
from dtrain.world import start
from tests.runs import execute, freeze, status, write_shards


class Disk:
    """dcp.save on a disk that is full at some of the saves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: set[int] = set()
        self.saves = 0
        self._save = dcp.save
        monkeypatch.setattr(dcp, "save", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.saves += 1
        if self.saves in self.full:
            raise OSError(28, "No space left on device")
        return self._save(*args, **kwargs)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_run_whose_last_weights_are_not_saved_is_not_finished(
    tmp_path: Path, shards: Path, disk: Disk, asynchronous: str
) -> None:
    save = f"trainer.checkpoint.asynchronous={asynchronous}"
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=15", save)
    disk.full = {2, 3}
    with pytest.raises(CheckpointError, match="step 15 could not be saved"):
        execute(file)
    assert status(tmp_path / "run")["state"] == "failed"
    assert execute(file) == 0
    assert [p.name for p in steps(tmp_path / "run" / "checkpoints")] == ["step-00000010", "step-00000015"]


def test_the_last_save_is_tried_twice(tmp_path: Path, shards: Path, disk: Disk) -> None:
    disk.full = {2}
    assert execute(freeze(tmp_path / "run", shards, "trainer.max_steps=15")) == 0
    assert verify(steps(tmp_path / "run" / "checkpoints")[-1])["step"] == 15


def test_a_checkpoint_stays_until_the_one_that_replaces_it_is_written(
    tmp_path: Path, shards: Path, disk: Disk
) -> None:
    """A stop in mid-evaluation saved step 10; its evaluation is made up for, and its checkpoint written again."""
    file = freeze(
        tmp_path / "run", shards, "trainer.max_steps=11", "trainer.evaluate_every=10",
        "trainer.checkpoint.best=objective", "trainer.checkpoint.keep=1",
    )  # fmt: skip
    assert execute(file) == 0
    saved = steps(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "status.json").unlink()
    shutil.rmtree(saved[-1])
    seal = saved[0] / "COMMITTED"
    before = verify(saved[0])
    _mark_as_not_evaluated(seal, before)
    disk.full = {disk.saves + 1}
    assert execute(file) == 0
    assert verify(saved[0])["judged"]["due"]  # the old one: the new one was not written
    assert verify(steps(tmp_path / "run" / "checkpoints")[-1])["step"] == 11


def _mark_as_not_evaluated(seal: Path, info: dict[str, Any]) -> None:
    from dtrain.checkpoint import _seal

    info["judged"]["due"] = True
    seal.write_bytes(_seal(info))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_full_disk_ends_neither_the_log_nor_its_lines(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(small_disk, max_steps=10, main=True)
    log.start(0)
    log.event(1, "checkpoint", "before")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * shutil.disk_usage(small_disk).free)
    for step in range(2, 200):
        log.evaluation(step, "valid", {f"mse/level{i}": 0.1 for i in range(10)}, epoch=1.0)
        log.beat(step, state="running")
    ballast.unlink()
    log.event(200, "checkpoint", "after")
    log.close()
    lines = read_lines(small_disk / "metrics.jsonl")
    assert (lines[0]["message"], lines[-1]["message"]) == ("before", "after")
    said = capsys.readouterr().out
    assert 1 <= said.count("not logged, training goes on: [Errno 28]") <= 4


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    append_line(file, {"step": 1})
    with file.open("a") as f:
        f.write('{"step": 2, "lo')
    append_line(file, {"step": 3})
    assert [line["step"] for line in read_lines(file)] == [1, 3]


def test_a_second_process_does_not_train_in_the_same_folder(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LEAVING", 0.1)
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=1")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "running.lock").open("w") as lock:
        print("process 4711 on node3", end="", file=lock, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being trained by process 4711 on node3"):
            execute(file)
    assert execute(file) == 0


@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_run_does_not_continue_on_other_data(what: str, tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=1")
    assert execute(file) == 0
    other = tmp_path / "other"
    if what == "images":
        write_shards(other, seed=1)
    else:
        shutil.copytree(shards, other)
        manifest = json.loads((other / "train" / "manifest.json").read_text())
        labels = np.load(other / "train" / "labels.npy")
        np.save(other / "train" / "labels.npy", labels[::-1])
        manifest["files"]["labels.npy"]["sha256"] = sha256(other / "train" / "labels.npy")
        manifest["sha256"] = manifest_digest(manifest)
        (other / "train" / "manifest.json").write_text(json.dumps(manifest))
    file.write_text(file.read_text().replace(str(shards), str(other)))
    with pytest.raises(ConfigError, match="trained on other data"):
        execute(file)


def test_a_run_made_before_its_model_had_an_argument_continues(tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=1")
    old = file.read_text()
    assert "  prior_scale: 1.0\n" in old
    file.write_text(old.replace("  prior_scale: 1.0\n", ""))
    assert execute(file) == 0
    file.write_text(old)
    assert execute(file) == 0  # it is finished


@pytest.mark.parametrize("content", ["", "seed: ["])
def test_a_damaged_configuration_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=str(file)):
        read(load(file))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(tmp_path)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU here"):
        start("cuda")
