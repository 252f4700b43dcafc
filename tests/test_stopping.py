"""Evaluations while training: once an epoch, ending the training early, and not lost to a stop."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from dtrain.checkpoint import read_seal, steps
from dtrain.compose import compose, load, read
from dtrain.config import ConfigError, HeldOut, signature
from dtrain.evaluate.__main__ import evaluate_run
from dtrain.evaluate.evaluator import Evaluator
from dtrain.faults import Interrupted
from dtrain.files import STOPPED
from dtrain.trainer import Trainer
from tests.runs import evaluations, execute, freeze, status

STILL = "optim.default.lr=1e-30"  # no weight moves, so that no evaluation is better than the first
BEST = "trainer.checkpoint.best=objective"


def evaluated(run: Path) -> list[int]:
    return [line["step"] for line in evaluations(run)]


def test_an_epoch_is_as_many_steps_as_it_has_batches(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    assert execute(freeze(run, shards, "trainer.evaluate_every=epoch", "trainer.max_steps=15")) == 0
    assert evaluated(run) == [6, 12, 15]  # 96 images in batches of 16
    assert (run / "images" / "curves.png").is_file()


def test_patience_ends_the_training_and_the_best_weights_stay(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    assert execute(freeze(run, shards, STILL, BEST, "trainer.evaluate_every=5", "trainer.patience=2")) == 0
    assert evaluated(run) == [5, 10, 15, 5]
    first, *_, last = evaluations(run)
    assert first["objective"] == last["objective"]
    assert (status(run)["state"], status(run)["step"]) == ("finished", 5)
    assert [int(p.name[5:]) for p in steps(run / "checkpoints")] == [5, 10, 15]
    config = read(load(run / "config.yaml"))
    assert evaluate_run(config, run) == 0
    assert evaluated(run)[-1] == 5  # the result's, not the newest checkpoint's
    longer = (STILL, BEST, "trainer.evaluate_every=5", "trainer.patience=2", "trainer.max_steps=80")
    with pytest.raises(ConfigError, match=r"it ended at step 15 by trainer\.patience, not by its length"):
        execute(freeze(run, shards, *longer, "run.extend=true"))


def judged(run: Path) -> list[tuple[str, int, float]]:
    """(metric, step, value) of the checkpoints that were the best so far."""
    seals = map(read_seal, steps(run / "checkpoints"))
    return [(s["judged"]["metric"], s["step"], s["value"]) for s in seals if s["value"] is not None]


@pytest.mark.parametrize(
    "metric", ["isc/score", "explained/level1", "precision/score", "recall/score", "generative_use/z2"]
)
def test_patience_waits_for_a_larger_one_of_a_metric_to_maximise(
    metric: str, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = tmp_path / "run", iter([5.0, 7.0, 6.0, 5.0, 7.0, 7.0])
    monkeypatch.setattr(Evaluator, "measure", lambda self, split: {metric: next(given)})
    monkeypatch.setattr(Evaluator, "rehearse", lambda self: {metric})
    best = f"trainer.checkpoint.best={metric}"
    assert execute(freeze(run, shards, best, "trainer.evaluate_every=5", "trainer.patience=2")) == 0
    assert evaluated(run) == [5, 10, 15, 20, 10]
    assert judged(run)[-1] == (metric, 10, 7.0) and status(run)["step"] == 10


def test_nan_is_never_the_best_larger_may_be_better_and_another_metric_starts_anew(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    given = iter([math.nan, 7.0, math.nan, 6.0, 6.0, 6.0, 1.0, 1.0, 1.0, 1.0])
    evaluate = Evaluator.measure

    def scripted(self: Evaluator, split: HeldOut) -> dict[str, float]:
        return evaluate(self, split) | {"isc/score": next(given)}

    monkeypatch.setattr(Evaluator, "measure", scripted)
    known = Evaluator.rehearse
    monkeypatch.setattr(Evaluator, "rehearse", lambda self: known(self) | {"isc/score"})
    often = ("trainer.evaluate_every=5", "trainer.max_steps=20")
    assert execute(freeze(run, shards, *often, "trainer.checkpoint.best=isc/score")) == 0
    assert judged(run) == [("isc/score", 10, 7.0)]
    (run / "status.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    assert execute(freeze(run, shards, *often, "trainer.checkpoint.best=objective")) == 0
    assert judged(run)[-1][:2] in {("objective", 15), ("objective", 20)}


@pytest.mark.parametrize("metric", ["score", "isc_std/digits/normal"])
def test_a_metric_that_cannot_be_judged_by_is_refused(tmp_path: Path, shards: Path, metric: str) -> None:
    often = ("trainer.evaluate_every=5", f"trainer.checkpoint.best={metric}")
    with pytest.raises(ConfigError, match=f"checkpoint.best={metric}"):
        execute(freeze(tmp_path / "run", shards, *often))
    assert not (tmp_path / "run").exists()


def test_evaluations_without_a_better_one_are_counted_over_a_restart(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the middle of an evaluation: the next start makes up for it, and goes on counting."""
    run = tmp_path / "run"
    file = freeze(run, shards, STILL, BEST, "trainer.evaluate_every=5", "trainer.patience=3")
    evaluate = Evaluator.measure
    calls = []

    def interrupted(self: Evaluator, split: HeldOut) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted
        return evaluate(self, split)

    monkeypatch.setattr(Evaluator, "measure", interrupted)
    assert execute(file) == STOPPED
    assert (status(run)["step"], evaluated(run)) == (15, [5, 10])
    assert execute(file) == 0
    assert evaluated(run) == [5, 10, 15, 20, 5]


def test_patience_needs_a_metric_and_is_part_of_what_a_run_is(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.checkpoint\.best"):
        execute(freeze(tmp_path / "run", shards, "trainer.patience=2", "trainer.evaluate_every=5"))
    with pytest.raises(ConfigError, match=r"checkpoint\.best=.*set trainer\.evaluate_every"):
        execute(freeze(tmp_path / "run", shards, BEST))
    assert not (tmp_path / "run").exists()

    def of(*overrides: str) -> str:
        return signature(read(compose(["trainer.evaluate_every=5", *overrides])))

    assert of(BEST) == of("trainer.checkpoint.best=mse/level1")
    assert of(BEST, "trainer.patience=2") != of("trainer.checkpoint.best=mse/level1", "trainer.patience=2")


def test_what_a_refused_removal_has_left_does_not_outlive_the_run(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Trainer.evaluate

    def leaving(self: Trainer, split: HeldOut, pictures: bool = False) -> dict[str, float]:
        newest = steps(self.checkpoints.folder)[-1]
        shutil.copytree(newest, newest.with_suffix(".replaced"), dirs_exist_ok=True)
        return evaluate(self, split, pictures)

    monkeypatch.setattr(Trainer, "evaluate", leaving)
    run = tmp_path / "run"
    assert execute(freeze(run, shards, "trainer.max_steps=2")) == 0
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
