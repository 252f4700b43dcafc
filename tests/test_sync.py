"""python -m dtrain.sync: what a run has logged, read back from each tracker's own store on this machine."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtrain import compose as configs
from dtrain.config import signature
from dtrain.files import append_line
from dtrain.sync import main
from tests.runs import execute, freeze, metrics, write_shards

Curve = list[tuple[int, float]]  # (step, value) in the order of the steps
Reader = Callable[[str], Curve]  # of a metric


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synced")
    write_shards(folder / "shards")
    assert execute(freeze(folder / "run", folder / "shards", "trainer.max_steps=10")) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a present folder where a tracker may leave its files."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "run"))


def check(run: Path, to: str, read: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything arrives once, and later only what is new; an evaluation also of a step that has passed."""
    losses = [(m["step"], m["loss/all"]) for m in metrics(run, "train")]
    assert [step for step, _ in losses] == [5, 10]
    (found,) = (m["mse/level1"] for m in metrics(run, "evaluation") if m["split"] == "test")
    assert main([str(run), "--to", to]) == 0
    assert read("loss/all") == losses
    assert read("test/mse/level1") == [(10, found)]

    assert main([str(run), "--to", to]) == 0
    assert f"run: no new lines to {to}, project dtrain" in capsys.readouterr().out
    now = time.time()
    append_line(run / "metrics.jsonl", {"kind": "train", "step": 15, "time": now, "loss/all": "inf"})
    append_line(run / "metrics.jsonl", {"kind": "evaluation", "step": 5, "time": now, "split": "test", "isc": 2.0})
    assert main([str(run), "--to", to]) == 0
    assert f"run: 2 new lines to {to}" in capsys.readouterr().out
    assert read("loss/all") == [*losses, (15, float("inf"))]
    assert read("test/isc") == [(5, 2.0)]


def own(run: Path) -> str:
    return signature(configs.typed(configs.load(run / "config.yaml")))


def test_mlflow(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve()}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    def the_run() -> tuple[MlflowClient, str]:
        client = MlflowClient()
        (experiment,) = client.search_experiments(filter_string="name = 'dtrain'")
        (only,) = client.search_runs([experiment.experiment_id])
        assert only.data.tags["signature"] == own(run) and only.info.status == "FINISHED"
        assert only.data.params["trainer.max_steps"] == "10"
        assert {f.path for f in client.list_artifacts(only.info.run_id, "images")} >= {"images/samples.png"}
        return client, only.info.run_id

    def read(metric: str) -> Curve:
        client, known = the_run()
        # A database has no infinity: MLflow keeps the largest double.
        largest = sys.float_info.max
        history = client.get_metric_history(known, metric)
        return sorted((m.step, float("inf") if m.value == largest else m.value) for m in history)

    check(run, "mlflow", read, capsys)


def test_trackio(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(run.resolve() / "trackio"))  # which it reads once, when it is imported

    def read(metric: str) -> Curve:
        with sqlite3.connect(run / "trackio" / "dtrain.db") as base:
            rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
        (name,) = {row[0] for row in rows}
        assert name == f"stackedwae-digits-{own(run)}"
        values = [(step, json.loads(content)) for _, step, content in rows]
        assert any("images/samples" in v for _, v in values)
        return [(step, float(v[metric])) for step, v in values if metric in v]

    check(run, "trackio", read, capsys)


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no room for the header of a piece
            at += 2**15 - at % 2**15
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(whole)
            whole = b""


def test_wandb(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def read(metric: str) -> Curve:
        """Of all offline folders: `wandb sync` puts those of one id into one run."""
        found: Curve = []
        for file in sorted(Path("wandb").glob("offline-run-*/*.wandb")):
            every = list(records(file))
            ids = {r.run.run_id for r in every if r.WhichOneof("record_type") == "run"}
            assert ids == {own(run)}
            for record in every:
                values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                if metric in values:
                    found.append((values["step"], float(values[metric])))
        return found

    check(run, "wandb", read, capsys)
    assert list(Path("wandb").glob("offline-run-*/files/media/images/images/samples_*.png"))


def test_what_cannot_be_sent_is_said_in_a_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    for folder, to, said in (
        (run, "wandb", "pip install 'dtrain[wandb]'"),
        (Path("none"), "mlflow", "no configuration file none/config.yaml"),
    ):
        assert main([str(folder), "--to", to]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (run / "sync.json").exists()
