"""Two stages: killed or stopped anywhere a run ends with the same weights; each stage has its own patience."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.compose import load, read
from dtrain.config import ConfigError
from dtrain.evaluate.__main__ import evaluate_run
from dtrain.files import STOPPED
from dtrain.trainer import Trainer
from tests.harness import difference
from tests.processes import launch
from tests.runs import evaluations, execute, final_weights, freeze, metrics, status
from tests.stages import TwoStage

LENGTHS = "trainer.max_steps={autoencoder: 12, generator: 14}"
MODEL = "tests.stages.TwoStage"


def configured(folder: Path, shards: Path, *overrides: str, **model: Any) -> Path:
    given = {"_target_": MODEL, "encodings": str(folder.with_suffix(".encodings")), **model}
    return freeze(folder, shards, LENGTHS, "trainer.checkpoint.every=5", *overrides, model=given)


def encoded(folder: Path) -> int:
    """Rows that were encoded so far, by all ranks."""
    file = folder.with_suffix(".encodings")
    return sum(map(int, file.read_text().split())) if file.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Tensor]:
    """The final weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert execute(configured(folder, shards)) == 0
    assert encoded(folder) == 96, "the training set once"
    assert status(folder)["step"] == 26
    assert [line["images"] for line in metrics(folder, "train") if line["step"] in (12, 26)] == [12 * 16, 14 * 16]
    return final_weights(folder)


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Calls action(self, *args) before owner.name."""
    method = getattr(owner, name)

    def hooked(self: Any, *args: Any) -> Any:
        action(self, *args)
        return method(self, *args)

    setattr(owner, name, hooked)


def at_step(step: int) -> None:
    before(Trainer, "advance", lambda trainer: trainer.step == step and kill())


def at_the_boundary() -> None:
    """The last step of the first stage is saved, its end is not."""
    before(Trainer, "_enter", lambda trainer, number: number == 1 and kill())


def after_the_boundary_is_saved() -> None:
    def action(trainer: Trainer) -> None:
        if trainer.number == 1:
            trainer.checkpoints.wait()
            kill()

    before(Trainer, "_open", action)


def in_the_source(number: int) -> None:
    """While the training set is encoded, once the first stage has ended."""

    def arm(trainer: Trainer) -> None:
        if trainer.number == 1:
            trainer.checkpoints.wait()
            before(TwoStage, "encode", lambda *args: kill(number))

    before(Trainer, "_open", arm)


DEATHS: dict[str, Callable[[], None]] = {
    "in the first stage": lambda: at_step(8),
    "in the second stage": lambda: at_step(19),
    "before the boundary's save": at_the_boundary,
    "after the boundary's save": after_the_boundary_is_saved,
    "while the source is made": lambda: in_the_source(signal.SIGKILL),
}


def run_until(file: Path, death: str) -> int:
    """In a process of its own, which dies on the way."""
    DEATHS[death]()
    return execute(file)


def run_until_stopped(file: Path) -> int:
    in_the_source(signal.SIGTERM)
    return execute(file)


@pytest.mark.parametrize("death", DEATHS)
def test_killed_anywhere_a_run_of_two_stages_ends_with_the_same_weights(
    tmp_path: Path, shards: Path, whole: dict[str, Tensor], death: str
) -> None:
    run = tmp_path / "run"
    file = configured(run, shards)
    assert launch(1, run_until, file, death, check=False) == ["died"]
    assert status(run)["state"] == "running"
    assert launch(1, execute, file) == [0]
    assert difference(final_weights(run), whole) == 0
    assert encoded(run) <= 96 + 16, "no second encoding, but for the batch that the kill came in"


def test_asked_to_stop_while_the_source_is_made_it_stops_and_continues(
    tmp_path: Path, shards: Path, whole: dict[str, Tensor]
) -> None:
    run = tmp_path / "run"
    file = configured(run, shards)
    assert launch(1, run_until_stopped, file) == [STOPPED]
    assert (status(run)["state"], status(run)["step"]) == ("stopped", 12)
    assert not list((run / "latents").glob("*.npy")) if (run / "latents").exists() else True
    assert launch(1, execute, file) == [0]
    assert difference(final_weights(run), whole) == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_both_stages_as_one_does_and_continue_after_a_kill(
    tmp_path: Path, shards: Path, whole: dict[str, Tensor], strategy: str
) -> None:
    run = tmp_path / "run"
    file = configured(run, shards, f"trainer.strategy={strategy}")
    assert launch(2, run_until, file, "in the second stage", check=False) == ["died", "died"]
    assert encoded(run) == 96, "every rank its own rows"
    assert launch(2, execute, file) == [0, 0]
    assert encoded(run) == 96
    assert difference(final_weights(run), whole) < 1e-4


# So large a learning rate that an early evaluation is the best one.
JUDGED = (
    "optim.groups.autoencoder.lr=3.0", "trainer.evaluate_every=2", "trainer.patience={autoencoder: 2}",
    "trainer.checkpoint.best={autoencoder: objective}",
)  # fmt: skip


def test_a_stage_that_ends_by_patience_leaves_its_best_weights_to_the_next(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    assert execute(configured(run, shards, *JUDGED)) == 0
    boundary = metrics(run, "stage")[1]["step"]
    assert boundary < 12
    assert status(run)["step"] == boundary + 14, "the second stage has its whole length"
    held = {line["step"]: line["objective"] for line in evaluations(run)}
    best = min((step for step in held if step <= boundary), key=lambda step: held[step])
    assert best == boundary - 4, "two evaluations without a better one"
    after = [value for step, value in held.items() if step > boundary]
    assert after == pytest.approx([held[best]] * len(after), rel=1e-5), "the second stage does not train them"
    assert evaluate_run(read(load(run / "config.yaml")), run) == 0
    assert evaluations(run)[-1]["step"] == boundary + 14
    again = tmp_path / "again"
    other = configured(again, shards, *JUDGED)
    assert launch(1, run_until, other, "before the boundary's save", check=False) == ["died"]
    assert launch(1, execute, other) == [0]
    assert difference(final_weights(run), final_weights(again)) == 0


def test_a_stage_of_no_steps_is_skipped_with_the_networks_of_another_run(tmp_path: Path, shards: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert execute(configured(first, shards)) == 0
    skip = "trainer.max_steps={autoencoder: 0, generator: 6}"
    file = configured(second, shards, skip, "seed=3", pretrained=str(first))
    assert execute(file) == 0
    mine, theirs = final_weights(second), final_weights(first)
    shared = [k for k in mine if not k.startswith("model.generator")]
    assert shared and all(torch.equal(mine[k], theirs[k]) for k in shared)
    assert any(not torch.equal(mine[k], theirs[k]) for k in mine)
    shutil.rmtree(first)
    (second / "status.json").unlink()
    assert execute(file) == 0, "what it started from is in its own checkpoints"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=30", "give each stage its own: autoencoder, generator"),
        ("trainer.max_steps={autoencoder: 3, decoder: 3}", r"max_steps\.decoder: the model has no such stage"),
        ("trainer.checkpoint.best={other: mse/level1}", r"trainer\.checkpoint\.best\.other"),
        ("trainer.max_steps={autoencoder: 0, generator: 0}", "set steps for autoencoder, generator"),
    ],
)
def test_settings_that_do_not_fit_the_stages_are_refused(
    tmp_path: Path, shards: Path, override: str, message: str
) -> None:
    file = freeze(tmp_path / "run", shards, *JUDGED[:2], override, model={"_target_": MODEL})
    with pytest.raises(ConfigError, match=message):
        execute(file)
    assert not (tmp_path / "run").exists()


def greedy(self: Any, batches: Any, update: Any) -> None:
    update("autoencoder", self.autoencoder_loss, next(batches))
    next(batches)


def test_a_step_that_takes_more_batches_than_its_stage_says_is_named(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.stages.TwoStage.autoencoder_step", greedy)
    with pytest.raises(RuntimeError, match="stage 'autoencoder' took 2 batches, its batches_per_step says 1"):
        execute(configured(tmp_path / "run", shards))
