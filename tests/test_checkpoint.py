"""Checkpoints: any world loads any other's, damage is noticed, a full disk costs nothing but the save."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dtrain.checkpoint import COMMITTED, Checkpointer, CheckpointError, steps, stored_keys, verify
from dtrain.config import CheckpointConfig
from dtrain.tensors import allocate, restore_settings, settings, training_state
from dtrain.world import start
from tests.harness import Session, difference, make_config
from tests.processes import launch

WORLDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1": (1, ()),
    "ddp2": (2, ()),
    "fsdp2": (2, ("trainer.strategy=fsdp",)),
    "ddp4": (4, ()),
}
MODELS = ("stackedwae", "adversary")
EXTRAS = ("optim.default.ema=0.9", "optim.default.warmup_images=400")


def keeping(**changes: Any) -> CheckpointConfig:
    return CheckpointConfig(
        **{"every": 1, "keep": 2, "milestones": None, "best": None, "asynchronous": True} | changes
    )


def save(session: Session, folder: Path, step: int, **changes: Any) -> list[str]:
    """Saves a session; returns what the checkpointer reported."""
    said: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(folder, keeping(**changes), session.world, said.append)
    session.updater.unfreeze()
    info = {"step": step, "images": session.images, **judged(None), **settings(session.updater)}
    checkpointer.save(training_state(session.algorithm, session.updater), info)
    checkpointer.wait()
    return said


def judged(value: float | None, stage: str = "train", metric: str = "objective") -> dict[str, Any]:
    """What an evaluation at the time of the save adds."""
    return {"value": value, "stage": stage, "judged": {"metric": metric}}


def load(session: Session, folder: Path) -> list[str]:
    said: list[str] = []
    checkpointer = Checkpointer(folder, keeping(), session.world, said.append)
    found = checkpointer.latest()
    assert found is not None
    path, info = found
    session.updater.unfreeze()
    restore_settings(session.updater, info, session.world.device)
    allocate(session.algorithm, session.updater, stored_keys(path))
    checkpointer.load(path, training_state(session.algorithm, session.updater))
    session.images = info["images"]
    session.stream = session.batches()
    return said


def write_all(folder: Path, overrides: tuple[str, ...]) -> None:
    """Ten steps of each model, then a checkpoint."""
    world = start("cpu", timeout=60)
    for model in MODELS:
        session = Session(make_config(model, *EXTRAS, *overrides), world)
        session.steps(10)
        assert save(session, folder / model, 10) == []


def read_all(folders: list[Path], overrides: tuple[str, ...]) -> list[tuple[dict[str, Tensor], list[dict[str, Any]]]]:
    """From each folder, ten further steps: final weights, and the optimizers' settings right after loading."""
    world, results = start("cpu", timeout=60), []
    for folder in folders:
        session = Session(make_config(folder.name, *EXTRAS, "seed=0", *overrides), world)
        session.steps(1)  # whatever it did before must not matter
        assert load(session, folder) == []
        restored = [dict(g.optimizer.param_groups[0], params=None) for g in session.updater.groups.values()]
        session.steps(10)
        with session.updater.averaged():
            averaged = {f"averaged.{k}": v for k, v in session.weights().items()}
        results.append((session.weights() | averaged, restored))
    return results


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every model, written by every kind of world."""
    folder = tmp_path_factory.mktemp("written")
    for name, (world, overrides) in WORLDS.items():
        launch(world, write_all, folder / name, overrides)
    return folder


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, tuple[dict[str, Tensor], list[dict[str, Any]]]]:
    """Twenty steps without a stop, in one process; the settings as they were after ten."""
    results = {}
    for model in MODELS:
        session = Session(make_config(model, *EXTRAS), start("cpu"))
        session.steps(10)
        after_ten = [dict(g.optimizer.param_groups[0], params=None) for g in session.updater.groups.values()]
        session.steps(10)
        with session.updater.averaged():
            averaged = {f"averaged.{k}": v for k, v in session.weights().items()}
        results[model] = (session.weights() | averaged, after_ten)
    return results


@pytest.mark.parametrize("reader", ["1", "ddp2", "fsdp2"])
def test_every_world_continues_every_other_worlds_run(written: Path, uninterrupted: Any, reader: str) -> None:
    world, overrides = WORLDS[reader]
    folders = [written / writer / model for writer in WORLDS for model in MODELS]
    for results in launch(world, read_all, folders, overrides):
        for folder, (weights, restored) in zip(folders, results, strict=True):
            expected, after_ten = uninterrupted[folder.name]
            assert difference(expected, weights) < 1e-8, folder
            assert restored == after_ten, folder


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> tuple[Session, Path, list[dict[str, Tensor]]]:
    session = Session(make_config("adversary"), start("cpu"))
    weights = []
    for step in (1, 2):
        session.steps(1)
        save(session, tmp_path / "checkpoints", step)
        weights.append(session.weights())
    return session, tmp_path / "checkpoints", weights


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate, os.remove])
def test_damage_to_any_file_is_reported_and_the_one_before_is_loaded(two_checkpoints: Any, damage: Any) -> None:
    session, folder, weights = two_checkpoints
    newest = steps(folder)[-1]
    names = [f.name for f in newest.iterdir()]
    assert COMMITTED in names and len(names) >= 3
    for name in names:
        whole = folder.parent / "whole"
        shutil.copytree(newest, whole)
        damage(newest / name)
        (said,) = load(session, folder)
        assert name in said and "passed over" in said
        assert difference(session.weights(), weights[0]) == 0
        shutil.rmtree(newest)
        whole.rename(newest)
    assert load(session, folder) == []
    assert difference(session.weights(), weights[1]) == 0


def test_every_bit_of_the_seal_counts(two_checkpoints: Any) -> None:
    _, folder, _ = two_checkpoints
    seal = steps(folder)[-1] / COMMITTED
    content = seal.read_bytes()
    for i in range(len(content)):
        seal.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            verify(seal.parent)


def test_what_a_kill_in_the_middle_of_a_replacement_leaves_is_put_in_order(two_checkpoints: Any) -> None:
    session, folder, weights = two_checkpoints
    newest = steps(folder)[-1]
    newest.rename(newest.with_suffix(".replaced"))  # killed before the new one had its name
    shutil.copytree(newest.with_suffix(".replaced"), newest.with_suffix(".incomplete"))
    Checkpointer(folder, keeping(), session.world, print).tidy()
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert load(session, folder) == []
    assert difference(session.weights(), weights[1]) == 0


def test_an_unpublished_checkpoint_does_not_count(two_checkpoints: Any) -> None:
    session, folder, weights = two_checkpoints
    newest = steps(folder)[-1]
    newest.rename(newest.with_suffix(".incomplete"))
    assert load(session, folder) == []
    assert difference(session.weights(), weights[0]) == 0


def test_last_best_and_milestones_are_kept(tmp_path: Path) -> None:
    session = Session(make_config("adversary"), start("cpu"))
    checkpointer = Checkpointer(tmp_path, keeping(keep=1, milestones=4, best="objective"), session.world, print)
    for step, value in enumerate([3.0, 1.0, None, None, None, None], start=1):
        checkpointer.save(training_state(session.algorithm, session.updater), {"step": step, **judged(value)})
        checkpointer.wait()
    assert [int(p.name[5:]) for p in steps(tmp_path)] == [2, 4, 6]
    found = checkpointer.latest(best=True)
    assert found is not None and (found[1]["step"], found[1]["value"]) == (2, 1.0)
    later = {"step": 7, **judged(None, stage="second")}
    checkpointer.save(training_state(session.algorithm, session.updater), later)
    checkpointer.wait()
    assert checkpointer.latest(best=True) is None, "another stage's best is not this one's"
    assert [int(p.name[5:]) for p in steps(tmp_path)] == [4, 7]


def test_a_checkpoint_of_another_model_is_refused(two_checkpoints: Any) -> None:
    _, folder, _ = two_checkpoints
    other = Session(make_config("stackedwae"), start("cpu"))
    checkpointer = Checkpointer(folder, keeping(), other.world, print)
    with pytest.raises(CheckpointError, match="another model"):
        checkpointer.load(steps(folder)[-1], training_state(other.algorithm, other.updater))


def save_and_fill(disk: Path) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
    session = Session(make_config("stackedwae"), start("cpu", timeout=60))
    session.steps(2)
    assert save(session, disk / "checkpoints", 2) == []
    first = session.weights()
    if session.world.main:
        (disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(disk).free - 8192))
    session.world.barrier()
    session.steps(1)
    said = save(session, disk / "checkpoints", 3)
    session.steps(1)  # training goes on
    load(session, disk / "checkpoints")
    return said, first, session.weights()


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_leaves_training_running_and_earlier_checkpoints_whole(small_disk: Path, world: int) -> None:
    for said, first, loaded in launch(world, save_and_fill, small_disk):
        assert len(said) == 1 and "not saved, training goes on" in said[0] and "No space left" in said[0]
        assert difference(first, loaded) == 0
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["step-00000002"]
