"""Packs of a sweep: which points go together, and what becomes of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.config import ConfigError
from dtrain.files import read_json, write_json
from launch import jobs, packs
from launch.points import make_points
from launch.settings import Launcher
from launch.store import Submission, open_sweep, sweep_id
from launch.submit import submit
from tests.harness import make_config
from tests.launch.support import TINY, StubChecker, until


def test_points_of_one_architecture_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_check_model", lambda config: None)  # there is no data
    own = (
        ["model.lambda_rec=0.1"], ["model.lambda_rec=1"], ["seed=5", "optim.default.lr=1e-4"],
        ["model.lambda_rec=0"], ["model.width=2"], ["trainer.batch_size=8"],
    )  # fmt: skip
    configs = {i: make_config("stackedwae", *o) for i, o in enumerate(own)}
    assert packs.grouped(configs, 25, Launcher()) == [[0, 1, 2], [3], [4], [5]]
    assert packs.grouped(configs, 2, Launcher()) == [[0, 1], [2], [3], [4], [5]]


def test_auto_packs_what_can_be_packed_where_a_run_is_one_process_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_check_model", lambda config: None)  # there is no data
    own = (["seed=1"], ["trainer.precision=bf16"], ["seed=2"], ["trainer.precision=bf16", "seed=2"], ["seed=3"])
    configs = {i: make_config("stackedwae", *o) for i, o in enumerate(own)}
    assert packs.grouped(configs, "auto", Launcher(gpus_per_node=1)) == [[0, 2, 4]]
    others = (
        Launcher(), Launcher(gpus_per_node=2), Launcher(gpus_per_node=1, nodes=2),
        Launcher(gpus_per_node=1, points_per_gpu=2),
    )  # fmt: skip
    assert not any(packs.grouped(configs, "auto", launcher) for launcher in others)
    with pytest.raises(ConfigError, match=r"^trainer\.precision=bf16: a pack has fp32"):
        packs.grouped(configs, 25, Launcher(gpus_per_node=1))


def test_a_pack_is_one_task_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "submissions" / "1"
    path.mkdir(parents=True)
    write_json(path / "packs.json", {"packs": [[0, 2], [1, 25]]})
    submission = Submission(path, "slurm", [0, 1, 2, 25, 30], {}, "4711 4712+20", "here", 4)
    assert submission.leaders == [0, 1, 30]
    assert [submission.task(i) for i in (2, 25, 30)] == [("4711", 0), ("4711", 1), ("4712", 10)]
    assert submission.log(25) == submission.log(1) != submission.log(30)


def test_one_point_of_a_pack_can_be_cancelled_and_the_other_goes_on(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.points.Checker", StubChecker)
    own = ("model.lambda_rec=.1,.5", "trainer.max_steps=100000", "trainer.checkpoint.every=20")
    options = [
        *(o for o in TINY if "launcher" not in o),
        f"data.path={shards}",
        f"run.root={tmp_path / 'runs'}",
        *own,
    ]
    points, _ = make_points(options, 1, tmp_path / "checked")
    sweep = open_sweep(tmp_path / "sweeps" / sweep_id(points, "pack"), points, [])
    submit(sweep, {i: p.yaml for i, p in enumerate(points)}, Launcher(), "local", 1, packs=[[0, 1]])

    def job(*words: str) -> str:
        assert jobs.main([*words, "--dir", str(sweep.path.parent)]) == 0
        return capsys.readouterr().out

    first, second = (p.run for p in sweep.points)
    log = sweep.log(0).read_text
    until(lambda: all(list(run.glob("checkpoints/step-*/COMMITTED")) for run in (first, second)), 240, log)
    job("cancel", sweep.id, "1")
    until(lambda: read_json(first / "status.json").get("starts") == 2, 240, log)
    assert read_json(second / "status.json")["state"] == "stopped"
    printed = job("status", sweep.id)
    assert "1 running" in printed and "1 cancelled" in printed
    job("cancel", sweep.id)
    until(lambda: "2 cancelled" in job("status", sweep.id), 240, log)
    assert read_json(first / "status.json")["state"] == "stopped"
