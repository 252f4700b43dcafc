"""A run that pauses at a share of its steps goes on as if it had not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dtrain.checkpoint import steps
from dtrain.compose import load, read
from dtrain.config import signature
from dtrain.evaluate.evaluator import Evaluator
from dtrain.faults import Interrupted
from dtrain.files import STOPPED
from dtrain.results import evaluation_from
from tests.runs import evaluations, execute, final_weights, freeze, status

OFTEN = ("trainer.evaluate_every=15", "trainer.max_steps=40")


def test_two_pauses_change_neither_weights_nor_numbers(tmp_path: Path, shards: Path) -> None:
    run, still = tmp_path / "run", tmp_path / "still"
    assert execute(freeze(still, shards, *OFTEN)) == 0
    for share, step in ((1 / 9, 4), (1 / 3, 13)):
        assert execute(freeze(run, shards, *OFTEN, f"run.pause_at={share}")) == 0
        assert (status(run)["state"], status(run)["step"]) == ("paused", step)
        assert (run / "checkpoints" / f"step-{step:08d}").is_dir()
        assert evaluations(run)[-1]["step"] == step and evaluations(run)[-1]["split"] == "valid"
        assert not (run / "images" / "samples.png").exists()
    assert execute(freeze(run, shards, *OFTEN)) == 0
    assert status(run)["state"] == "finished"
    paused, whole = final_weights(run), final_weights(still)
    assert paused.keys() == whole.keys() and all(torch.equal(paused[k], whole[k]) for k in whole)
    numbers = [{k: v for k, v in e.items() if k != "time"} for e in evaluations(run) if e["step"] not in (4, 13)]
    assert numbers == [{k: v for k, v in e.items() if k != "time"} for e in evaluations(still)]


def test_a_pause_that_was_killed_while_it_evaluated_is_made_up_for(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    file = freeze(run, shards, "run.pause_at=0.25")
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise Interrupted

        patch.setattr(Evaluator, "measure", interrupted)
        assert execute(file) == STOPPED
    assert evaluations(run) == [] and status(run)["step"] == 10
    assert execute(file) == 0
    assert status(run)["state"] == "paused" and [e["step"] for e in evaluations(run)] == [10]
    assert execute(file) == 0  # again: nothing moves
    assert status(run)["step"] == 10 and len(steps(run / "checkpoints")) == 1


def test_a_pause_is_no_part_of_what_a_run_is(tmp_path: Path, shards: Path) -> None:
    one, other = (read(load(freeze(tmp_path / "run", shards, f"run.pause_at={share}"))) for share in (0.1, "null"))
    assert signature(one) == signature(other)


def test_a_rung_is_read_at_its_step_or_the_first_evaluation_after_it(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    assert execute(freeze(run, shards, *OFTEN)) == 0
    found = [evaluation_from(run, step) for step in (1, 15, 16, 40, 41)]
    assert [{e["step"] for e in lines} for lines in found] == [{15}, {15}, {30}, {40}, {40}]
