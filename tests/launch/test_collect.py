"""The results of a sweep: best point, seeds, missing points, heat map; and what a sweep keeps on disk."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import shutil
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dtrain.config import ConfigError
from dtrain.files import append_line, locked
from launch import jobs
from launch.collect import collect, grouped, main, read_rows
from launch.front import Point, front
from launch.heatmap import cells, draw
from launch.points import make_points
from launch.results import frame
from launch.store import ROOT, SweepFolder, open_sweep, snapshot, sweep_id


def made(tmp_path: Path, shards: Path, *overrides: str) -> SweepFolder:
    """A sweep's folder without any run."""
    points, _ = make_points(
        [*overrides, f"data.path={shards}", f"run.root={tmp_path / 'runs'}"], 1, tmp_path / "checked"
    )
    return open_sweep(tmp_path / sweep_id(points, "made"), points, [])


def finish(run: Path, **metrics: float) -> None:
    """Writes what a finished run leaves, whose numbers on the test split have the opposite sign."""
    run.mkdir(parents=True)
    evaluation = {"kind": "evaluation", "split": "valid", "step": 5, "time": 0.0, **metrics}
    middle = {**evaluation, "step": 2, "objective": -1.0}
    test = {**evaluation, "split": "test", **{k: -v for k, v in metrics.items()}}
    lines = ({"kind": "start"}, middle, evaluation, test)
    (run / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    (run / "status.json").write_text(json.dumps({"state": "finished", "step": 5, "max_steps": 5}))


def test_seeds_share_a_row_and_missing_points_are_named(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5", "seed=0,1,2")
    scores = {(0.1, 0): 1.0, (0.1, 1): 3.0, (0.1, 2): 5.0, (0.5, 0): 2.0}
    assert len(frame(sweep)) == 6
    for p in sweep.points:
        key = (p.values["model.lambda_rec"], p.values["seed"])
        if key in scores:
            finish(p.run, objective=scores[key], mse=2 * scores[key])
    best, other = grouped(read_rows(sweep), "objective")
    assert (best.values, best.mean, best.std) == ({"model.lambda_rec": 0.5}, 2.0, 0.0)
    assert (other.mean, other.std, len(other.rows)) == (3.0, 2.0, 3)  # the sample's deviation of 1, 3, 5
    collect(sweep, tmp_path / "out", "objective", None)
    printed = capsys.readouterr().out
    assert "| 0.1 | 3 ± 2 (3) | 6 ± 4 | -3 ± 2 |" in printed and "missing: 2 of 6 points (2 missing)" in printed
    assert "- 4: model.lambda_rec=0.5, seed=1: missing" in printed
    assert not (tmp_path / "out" / "heatmap.png").exists(), "one swept key has no map"
    with pytest.raises(ConfigError, match="the runs have mse, objective"):
        collect(sweep, tmp_path / "out", "fid", None)
    with pytest.raises(ConfigError, match="no known family"):
        collect(sweep, tmp_path / "out", "score", None)
    with pytest.raises(ConfigError, match="the sweep varies"):
        collect(sweep, tmp_path / "out", "objective", ["seed", "model.lambda_rec"])
    again = {"kind": "evaluation", "split": "valid", "step": 5, "time": 1.0, "fid": 9.0}
    append_line(sweep.points[0].run / "metrics.jsonl", again)
    row = read_rows(sweep)[0]
    assert row.metrics == {"objective": 1.0, "mse": 2.0, "fid": 9.0}, "evaluated again, differently"
    assert row.test == {"objective": -1.0, "mse": -2.0}
    assert math.isnan(grouped(read_rows(sweep), "objective")[1].means["fid"]), "of one seed of three"
    points = frame(sweep)
    assert list(points) == [
        "index", "model.lambda_rec", "seed", "state", "step", "restarts", "code", "hours", "images_per_s",
        "fid", "mse", "objective", "test/mse", "test/objective", "run",
    ]  # fmt: skip
    assert points["objective"].tolist()[:4] == [1.0, 3.0, 5.0, 2.0] and points["objective"].isna().sum() == 2
    assert points["seed"].tolist() == [0, 1, 2] * 2 and points["state"].tolist()[3:] == ["finished"] + ["missing"] * 2


def test_the_winner_is_the_validation_splits_and_the_test_splits_numbers_stand_beside_it(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5")
    for point, score in zip(sweep.points, (2.0, 1.0), strict=True):
        finish(point.run, objective=score)
    collect(sweep, tmp_path / "out", "objective", None)
    assert "best of 2 by objective: model.lambda_rec=0.5 (1) in" in capsys.readouterr().out
    with (tmp_path / "out" / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [(row["objective"], row["test/objective"]) for row in rows] == [("2.0", "-2.0"), ("1.0", "-1.0")]
    assert "| model.lambda_rec | objective | test/objective |" in (tmp_path / "out" / "results.md").read_text()
    with pytest.raises(ConfigError, match="no known family"):
        collect(sweep, tmp_path / "out", "test/objective", None)


def test_results_without_an_objective_are_judged_by_another_metric_and_wrong_options_are_named(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5", "model.lambda_match=1,2")
    collect(sweep, tmp_path / "out", None, None)  # there is no result yet
    finish(sweep.points[0].run, confidence=1.0, **{"explained/level1": 0.4, "mse/level1": 1.0})
    finish(sweep.points[2].run, **{"explained/level1": 0.6, "mse/level1": 2.0})
    collect(sweep, tmp_path / "out", None, None)
    printed = capsys.readouterr().out
    assert "no objective in these results: judged by explained/level1" in printed
    assert "best of 2 by explained/level1: model.lambda_rec=0.5" in printed
    assert "explained/level1" in (tmp_path / "out" / "report.html").read_text()
    finish(sweep.points[1].run, **{"fid/digits/prior": 9.0})
    known = "confidence, explained/level1, fid/digits/prior, mse/level1"
    folder = ["--dir", str(tmp_path)]
    (tmp_path / "file").touch()
    for option, said in (
        ([], f"--objective: no metric that is better or worse is in all results; they have {known}"),
        (["--objective", "score"], "--objective score: is of no known family"),
        (["--objective", "confidence"], "--objective confidence: has no better and worse"),
    ):
        assert main([sweep.id, *folder, *option]) == 2 and f"collect: {said}" in capsys.readouterr().err
    (sweep.points[1].run / "status.json").unlink()
    for option, said in (
        (["--front", "mse/level1", "score"], "--front score: is of no known family"),
        (["--heat", "seed", "model.lambda_rec"], "--heat seed: the sweep varies"),
        (["--heat", *["model.lambda_rec"] * 2], "--heat model.lambda_rec model.lambda_rec: rows and columns must be"),
        (["--out", str(tmp_path / "file")], f"--out {tmp_path / 'file'}: is no folder that can be made"),
        (["--dir", str(tmp_path / "none")], f"no sweep {sweep.id} in --dir {tmp_path / 'none'}; it has: none"),
    ):
        assert main([sweep.id, *folder, *option]) == 2 and f"collect: {said}" in capsys.readouterr().err
    assert jobs.main(["status", sweep.id, "²", *folder]) == 2 and "²: is not a point" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        jobs.main(["logs", sweep.id, "--lines=0", *folder])
    assert "argument --lines: 0: must be a number of at least 1" in capsys.readouterr().err


def test_a_diverged_run_is_never_best(tmp_path: Path, shards: Path) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5")
    finish(sweep.points[0].run, objective=float("nan"))
    finish(sweep.points[1].run, objective=7.0)
    assert [g.values["model.lambda_rec"] for g in grouped(read_rows(sweep), "objective")] == [0.5, 0.1]


def test_the_best_point_is_the_largest_where_larger_is_better(tmp_path: Path, shards: Path) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5,1")
    for point, score in zip(sweep.points, (2.0, 9.0, float("nan")), strict=True):
        finish(point.run, **{"objective": 1.0, "isc/digits/normal": score})
    found = grouped(read_rows(sweep), "isc/digits/normal")
    assert [s.values["model.lambda_rec"] for s in found] == [0.5, 0.1, 1]


@pytest.mark.parametrize("objective", ["objective", "precision/digits/normal"])
def test_the_heat_map_frames_the_best_cell(objective: str, tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"a": [1, 2, 3], "b": [10, 20]}
    scores = {(("a", a), ("b", b)): a + b / 100 for a in (1, 2, 3) for b in (10, 20) if (a, b) != (1, 10)}
    assert np.allclose(cells(scores, axes, objective), [[np.nan, 1.2], [2.1, 2.2], [3.1, 3.2]], equal_nan=True)
    draw(tmp_path / "map.png", scores, axes, objective)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    red = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=-1) < 60))
    assert len(red)
    (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0)
    height, width = pixels.shape[:2]
    assert left > width * 0.4 and bottom - top < height / 2 and right - left < width * 0.6
    assert bottom < height / 2 if objective == "objective" else top > height / 2  # the smallest, the largest


def test_a_cell_shows_the_best_over_the_other_keys() -> None:
    scores = {(("a", 1), ("b", 1), ("c", c)): float(c) for c in (3, 2, 5)}
    assert cells(scores, {"a": [1], "b": [1]}, "objective").tolist() == [[2.0]]
    assert cells(scores, {"a": [1], "b": [1]}, "isc/digits/normal").tolist() == [[5.0]]


def test_the_front_is_what_no_point_beats_in_both_metrics() -> None:
    def point(n: int, mse: float, isc: float) -> Point:
        return Point({"n": n}, {"mse/h0": mse, "isc/digits/normal": isc})

    points = [
        point(1, 0.1, 5.0),
        point(2, 0.2, 9.0),
        point(3, 0.2, 8.0),
        point(4, 0.15, 5.0),
        point(5, math.nan, 10.0),
    ]
    assert [p.values["n"] for p in front(points, "mse/h0", "isc/digits/normal")] == [1, 2]
    assert [p.values["n"] for p in front([*points, point(6, 0.2, 9.0)], "mse/h0", "isc/digits/normal")] == [1, 2, 6]
    assert [p.values["n"] for p in front(points, "mse/h0", "mse/h0")] == [1]


def test_the_front_is_drawn_in_a_panel_for_each_pair_of_metrics(tmp_path: Path, shards: Path) -> None:
    sweep = made(tmp_path, shards, "model.lambda_rec=.1,.5", "model.lambda_match=1,2", "seed=0,1")
    for n, point in enumerate(sweep.points[:-1]):
        finish(point.run, objective=float(n), **{"explained/level1": float(n)})
    pair = ["objective", "explained/level1"]
    widths = []
    for pairs in ([pair], [pair, pair]):
        collect(sweep, tmp_path / "out", "objective", None, pairs)
        widths.append(Image.open(tmp_path / "out" / "front.png").width)
    assert widths[1] == 2 * widths[0]
    with pytest.raises(ConfigError, match="--front mse/h0: the runs have explained/level1, objective"):
        collect(sweep, tmp_path / "out", "objective", None, [["mse/h0", "objective"]])
    with pytest.raises(ConfigError, match="no known family"):
        collect(sweep, tmp_path / "out", "objective", None, [["score", "objective"]])


def test_the_same_points_in_any_order_are_the_same_sweep(tmp_path: Path, shards: Path) -> None:
    first = made(tmp_path, shards, "seed=1,2,3")
    again = made(tmp_path, shards, "seed=3,2,1")
    assert again.path == first.path and [p.values["seed"] for p in again.points] == [1, 2, 3]
    assert made(tmp_path, shards, "seed=1,2").path != first.path
    with pytest.raises(ConfigError, match=first.id):
        SweepFolder.open(tmp_path / "nosuch")


def test_a_snapshot_is_the_code_and_is_shared_while_it_does_not_change(tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    for file in ("dtrain/trainer.py", "launch/job.py", "dtrain/configs/config.yaml"):
        assert (code / file).read_bytes() == (ROOT / file).read_bytes()
    assert snapshot(tmp_path) == code
    assert not list(code.rglob("__pycache__"))
    shutil.rmtree(code)
    assert snapshot(tmp_path) == code and (code / "dtrain").is_dir()


def _hold(path: Path, held: Event, release: Event) -> None:
    with locked(path):
        held.set()
        release.wait(30)


def test_a_lock_is_exclusive_and_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held, release))
    holder.start()
    assert held.wait(60)
    with locked(tmp_path / "lock", wait=False) as mine:
        assert not mine
    holder.kill()
    holder.join()
    with locked(tmp_path / "lock", wait=False) as mine:
        assert mine
