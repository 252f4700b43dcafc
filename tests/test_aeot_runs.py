"""Whole runs of AE-OT: killed in either stage or while encoding, on two ranks, with another run's autoencoder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.checkpoint import steps
from dtrain.compose import load, read
from dtrain.config import ConfigError
from dtrain.evaluate.__main__ import evaluate_run
from dtrain.models.base import Stage
from dtrain.nets.dcgan import ImageEncoder
from dtrain.trainer import Trainer
from tests.harness import difference
from tests.processes import launch
from tests.runs import evaluations, execute, final_weights, freeze, metrics, status, write_shards

SHAPE = (1, 24, 24)
LENGTHS = "{autoencoder: 8, potential: 10}"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images large enough for the networks."""
    folder = tmp_path_factory.mktemp("faces")
    write_shards(folder, shape=SHAPE)
    return folder


def configured(folder: Path, shards: Path, *overrides: str, lengths: str = LENGTHS, **model: Any) -> Path:
    given = {
        "_target_": "dtrain.models.aeot.AEOT", "latent_dim": 3, "width": 4, "hidden": 16, "problem_size": 8,
        "scale_codes": True, **model,
    }  # fmt: skip
    return freeze(
        folder, shards, f"trainer.max_steps={lengths}", f"data.image_shape={list(SHAPE)}",
        "trainer.checkpoint.every=3", "evaluate.transport_points=5", *overrides, model=given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch(1, execute, configured(folder, faces)) == [0]
    return folder


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int) -> None:
    advance = Trainer.advance

    def hooked(self: Trainer) -> Iterator[Stage]:
        if self.step == step:
            self.checkpoints.wait()
            kill()
        return advance(self)

    Trainer.advance = hooked  # type: ignore[method-assign]


def while_encoding() -> None:
    opened = Trainer._open

    def hooked(self: Trainer) -> None:
        if self.number == 1:
            self.checkpoints.wait()
            ImageEncoder.forward = kill  # type: ignore[method-assign, assignment]
        opened(self)

    Trainer._open = hooked  # type: ignore[method-assign]


DEATHS: dict[str, Callable[[], None]] = {
    "autoencoder": lambda: at_step(5),
    "encoding": while_encoding,
    "potential": lambda: at_step(13),
    "dual": lambda: at_step(31),
}


def run_until(file: Path, death: str) -> int:
    DEATHS[death]()
    return execute(file)


def test_it_trains_encodes_once_and_maps_noise(whole: Path) -> None:
    assert [line["message"] for line in metrics(whole, "stage")] == [
        "stage autoencoder: 8 steps", "stage potential: 10 steps"
    ]  # fmt: skip
    (codes,) = (whole / "latents").glob("*.npy")
    found = np.load(codes)
    assert found.shape == (96, 3)
    scale = final_weights(whole)["model.potential.scale"]
    assert float(scale) == pytest.approx(float(np.sqrt(found.var(0, ddof=1).mean())), rel=1e-5)
    last = evaluations(whole)[-1]
    assert {f"w2/{k}" for k in ("mapped", "floor", "normal", "gaussian", "mixture")} <= last.keys()
    assert all(np.isfinite(v) for v in last.values() if isinstance(v, float))
    assert all(line["data_wait_s"] >= 0 for line in metrics(whole, "train")), "for solved problems too"
    drawn = {p.name for p in (whole / "images").glob("*.png")}
    assert {"samples.png", "between_samples.png", "matched.png"} <= drawn
    assert evaluate_run(read(load(whole / "config.yaml")), whole) == 0
    again = evaluations(whole)[-1]
    assert {k: v for k, v in again.items() if "/" in k} == {k: v for k, v in last.items() if "/" in k}


@pytest.mark.parametrize("death", ["autoencoder", "encoding", "potential"])
def test_killed_anywhere_it_ends_with_the_same_weights(tmp_path: Path, faces: Path, whole: Path, death: str) -> None:
    run = tmp_path / "run"
    file = configured(run, faces)
    assert launch(1, run_until, file, death, check=False) == ["died"]
    assert status(run)["state"] == "running"
    assert launch(1, execute, file) == [0]
    assert difference(final_weights(run), final_weights(whole)) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_workers_changes_no_weight(tmp_path: Path, faces: Path, whole: Path, workers: int) -> None:
    run = tmp_path / "run"
    assert launch(1, execute, configured(run, faces, workers=workers)) == [0]
    assert difference(final_weights(run), final_weights(whole)) == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_what_one_does(tmp_path: Path, faces: Path, whole: Path, strategy: str) -> None:
    run = tmp_path / "run"
    assert launch(2, execute, configured(run, faces, f"trainer.strategy={strategy}")) == [0, 0]
    assert difference(final_weights(run), final_weights(whole)) < 1e-4


def of(weights: dict[str, Tensor], *nets: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k.startswith(tuple(f"model.{net}." for net in nets))}


def test_another_runs_autoencoder_takes_the_first_stages_place(tmp_path: Path, faces: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    wae = {"_target_": "dtrain.models.wae.WAEMMD", "code_dim": 3, "width": 4, "lambda_match": 1.0}
    size = f"data.image_shape={list(SHAPE)}"
    assert execute(freeze(other, faces, size, "trainer.max_steps=4", model=wae)) == 0
    assert execute(configured(run, faces, autoencoder=str(other))) == 0
    mine, theirs = (of(final_weights(r), "encoder", "decoder") for r in (run, other))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert status(run)["step"] == 10, "the potential's steps alone"


def test_the_semidiscrete_potential_trains_in_a_stage_between(tmp_path: Path, faces: Path, whole: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    files = [
        configured(
            folder, faces, "+optim.groups.dual.ema=0.9", dual="semidiscrete",
            lengths="{autoencoder: 8, dual: 40, potential: 6}",
        )
        for folder in (run, again)
    ]  # fmt: skip
    assert launch(1, run_until, files[0], "dual", check=False) == ["died"]
    assert launch(1, execute, files[0]) == launch(1, execute, files[1]) == [0]
    assert difference(final_weights(run), final_weights(again)) == 0
    last = evaluations(run)[-1]
    assert last["marginal_error/floor"] == pytest.approx(0.126, abs=0.03), "of 10 noises a code"
    assert 0 < last["marginal_error/dual"] < 1


def test_the_potential_works_with_the_averaged_weights_of_the_stage_before(tmp_path: Path, faces: Path) -> None:
    """Codes, evaluation and pictures are of the same encoder."""
    run = tmp_path / "run"
    assert execute(configured(run, faces, "optim.groups.autoencoder.ema=0.5")) == 0
    assert len(list((run / "latents").glob("*.npy"))) == 1
    assert len(steps(run / "checkpoints")) >= 1


def test_an_autoencoder_that_is_not_there_or_does_not_fit_is_refused(
    tmp_path: Path, faces: Path, whole: Path
) -> None:
    with pytest.raises(ConfigError, match=r"cannot start from .*nowhere: that is no run folder"):
        execute(configured(tmp_path / "run", faces, autoencoder=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"encoder.body.* is \[4, .*\] there, \[8, .*\] here"):
        execute(configured(tmp_path / "run", faces, width=8, autoencoder=str(whole)))
