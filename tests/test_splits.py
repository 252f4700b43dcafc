"""What the validation split decides, and that the test split decides nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dtrain.evaluate.curves import curves
from dtrain.files import append_line
from tests.data.backends import backends
from tests.harness import difference
from tests.runs import call, evaluations, execute, final_weights, freeze, metrics, status, write_shades

DARK, BRIGHT = 0, 215
JUDGED = ("trainer.evaluate_every=5", "trainer.checkpoint.best=mse/level1", "trainer.patience=2")


def run_on(folder: Path, valid: int, test: int) -> Path:
    """A run on dark images, which ends by its patience or at step 40."""
    write_shades(folder / "shards", train=DARK, valid=valid, test=test)
    assert execute(freeze(folder / "run", folder / "shards", *JUDGED)) == 0
    return folder / "run"


def validated(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["mse/level1"]) for line in evaluations(run)]


def test_patience_and_the_best_weights_are_those_of_the_validation_split(tmp_path: Path) -> None:
    """The longer it trains on dark images, the worse it reconstructs bright ones."""
    first = run_on(tmp_path / "first", valid=DARK, test=DARK)
    other_test = run_on(tmp_path / "test", valid=DARK, test=BRIGHT)
    other_valid = run_on(tmp_path / "valid", valid=BRIGHT, test=DARK)
    assert status(first)["step"] == status(other_test)["step"] == 40
    assert validated(first) == validated(other_test)
    assert difference(final_weights(first), final_weights(other_test)) == 0
    assert [step for step, _ in validated(other_valid)] == [5, 10, 15, 5] and status(other_valid)["step"] == 5


def test_the_test_split_is_measured_once_at_the_end(tmp_path: Path) -> None:
    run = run_on(tmp_path, valid=DARK, test=BRIGHT)
    lines = metrics(run, "evaluation")
    assert [line["split"] for line in lines] == ["valid"] * (len(lines) - 1) + ["test"]
    valid, test = lines[-2:]
    assert valid["step"] == test["step"] and valid.keys() == test.keys()
    assert test["mse/level1"] > 2 * valid["mse/level1"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("test/mse/level1")) == 1 and len(events.Scalars("valid/mse/level1")) == len(lines) - 1


def test_curves_are_those_of_the_validation_split(tmp_path: Path) -> None:
    for step, split, value in ((1, "valid", 0.5), (2, "valid", 0.25), (2, "test", 7.0)):
        line = {"kind": "evaluation", "split": split, "step": step, "epoch": float(step), "mse/level1": value}
        append_line(tmp_path / "metrics.jsonl", line)

    evaluation: Any = SimpleNamespace(site=SimpleNamespace(folder=tmp_path))
    (line,) = curves(evaluation)["curves"].axes[0].lines
    assert line.get_ydata().tolist() == [0.5, 0.25]


def test_shards_without_a_validation_split_are_to_be_prepared_again(tmp_path: Path) -> None:
    write_shades(tmp_path / "shards", train=DARK, test=DARK)
    refused = call("--config", freeze(tmp_path / "run", tmp_path / "shards"))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(
        f"dtrain: data.path={tmp_path / 'shards'}: has no valid split; prepare it again with: python"
    )
    assert not (tmp_path / "run").exists()


@backends("mapped", "ffcv", "dali", "dali-tar")
def test_every_loader_reads_the_held_out_splits(tmp_path: Path, options: dict[str, Any]) -> None:
    write_shades(tmp_path / "shards", formats=("npy", "beton", "tar"), train=DARK, valid=DARK, test=BRIGHT)
    more = [f"loader={options['name']}", *(f"loader.{k}={v}" for k, v in options.items() if k != "name")]
    found = []
    for name, loader in (("resident", []), ("other", more)):
        assert execute(freeze(tmp_path / name, tmp_path / "shards", "trainer.max_steps=2", *loader)) == 0
        found.append([(line["split"], line["mse/level1"]) for line in metrics(tmp_path / name, "evaluation")])
    assert found[0] == found[1] and [split for split, _ in found[0]] == ["valid", "test"]
