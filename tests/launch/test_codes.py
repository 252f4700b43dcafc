"""Points of other code: the warning, sweep.code=rerun, and both numbers in one table."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain import source
from dtrain.config import ConfigError
from dtrain.files import held, read_json, read_lines, write_json
from launch import codes, collect, jobs, local
from launch.standing import State
from launch.store import Entry, SweepFolder
from tests.launch.bench import Bench, bench, still
from tests.launch.support import ROOT, Project, until

__all__ = ["bench", "still"]  # fixtures


class Copy(Project):
    """A folder that holds the project's own code."""

    def command(self, script: str, *arguments: str) -> list[str]:
        _, _, *rest = super().command(script, *arguments)
        return [sys.executable, str(self.path / "launch" / script), *rest]


@pytest.fixture
def project(tmp_path: Path, shards: Path) -> Copy:
    """A copy of the code, in a shell without sbatch."""
    for folder in ("dtrain", "launch", "data_prep"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "PYTHONPATH": str(tmp_path)}
    return Copy(tmp_path, shards, environment)


def change_the_loss(project: Copy) -> None:
    file = project.path / "dtrain" / "models" / "stackedwae.py"
    text = file.read_text()
    changed = text.replace('terms["x"] = ', 'terms["x"] = 2 * ')
    assert changed != text
    file.write_text(changed)


def test_a_changed_loss_is_said_run_again_and_told_apart_in_one_table(
    project: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("sweep.py", "-m", "model.lambda_rec=.1,.5", "trainer.max_steps=2", "sweep.wait=true")
    printed = project(*command)
    assert "sweep.where=auto: local (no sbatch in PATH)" in printed and "warning" not in printed
    sweep = SweepFolder.open(project.path / "sweeps" / project.id_of(printed))
    runs = [p.run for p in sweep.points]
    (old,) = read_json(runs[0] / "environment.json")["code"]
    assert [m["code"] for m in read_lines(runs[0] / "metrics.jsonl") if m["kind"] == "start"] == [old]
    assert [p.name.partition("-")[0] for p in (sweep.path / "code").iterdir()] == [old]

    change_the_loss(project)
    until(lambda: not local.alive(sweep.submissions()[-1]), 60)
    shutil.rmtree(runs[1])
    printed = project(*command)
    (new,) = read_json(runs[1] / "environment.json")["code"]
    assert f"warning: 1 finished by other code than the present, {new}" in printed and "submitted 1 points" in printed
    folder = ["--dir", str(sweep.path.parent)]
    assert jobs.main(["status", sweep.id, *folder]) == 0
    assert f"warning: the points are of different code ({old}: point 0; {new}: point 1)" in capsys.readouterr().out

    printed = project(*command, "sweep.code=rerun")
    assert "1 outdated" in printed and "submitted 1 points" in printed and "warning" not in printed
    assert collect.main([sweep.id, *folder]) == 0
    table, page = capsys.readouterr().out, (sweep.path / "report.html").read_text()
    assert "warning" not in table and "best of 2" in table
    with (sweep.path / "results.csv").open() as f:
        first, _, kept = csv.DictReader(f)
    assert (kept["index"], kept["state"], kept["code"]) == ("0", "kept", old)
    assert (first["index"], first["state"], first["code"]) == ("0", "finished", new)
    assert first["objective"] != kept["objective"]
    for row in (first, kept):
        shown = f"| 0.1 | {float(row['objective']):.6g} |"
        assert next(line for line in table.splitlines() if line.startswith(shown)).endswith(f"| {row['code']} |")
        assert row["code"] in page and Path(row["run"]).name in page


def test_a_run_is_kept_once_for_each_time_and_left_alone_where_that_fails(
    still: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    still.settings.sweep.code = "rerun"

    def refused(*_: Any) -> int:
        raise ConfigError("refused")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="refused"):
        patch.setattr(local, "start", refused)
        still.sweep()
    assert still.names() == ["finished", "finished", "failed"]
    monkeypatch.setattr(codes, "LEAVING", 0.0)
    in_use = pytest.raises(ConfigError, match="run-1 is in use by process 1: wait for it")
    with held(still.run(1) / "running.lock", "process 1", lambda _: 0.0), in_use:
        still.sweep()
    assert not list(still.path.glob("runs/*code*"))
    for _ in range(2):
        assert "submitted 3 points" in still.sweep() and still.names() == ["lost"] * 3
        still.status(0, state="finished")
    names = [p.name for p in still.path.glob("runs/*code*")]
    assert sorted(names) == [f"run-{name}" for name in (
        "0.code-unknown", "0.code-unknown.2", "1.code-unknown", "2.code-unknown"
    )]  # fmt: skip


def test_a_run_that_other_code_continues_has_both_hashes(tmp_path: Path) -> None:
    own, other = source.code_hash(), "0123456789ab"
    assert source.extended_codes(None) == [own]
    for noted, codes_then in (
        ([other], [other, own]),
        ([other, own], [other, own]),
        ([own, other], [other, own]),
        (None, ["unknown", own]),
        (["../x", 7], ["unknown", own]),
    ):
        write_json(tmp_path / "environment.json", {"code": noted})
        assert source.extended_codes(tmp_path) == codes_then
    write_json(tmp_path / "environment.json", {"code": source.extended_codes(tmp_path)})
    assert State(Entry(0, {}, "", tmp_path), "stopped", {"step": 1}, None).code == f"unknown+{own}"
    assert State(Entry(0, {}, "", tmp_path), "pending", {}, None).code == ""


def test_a_project_of_its_own_counts_and_neighbours_in_an_environment_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dtrain").mkdir()
    (tmp_path / "dtrain" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    found = [source.code_hash()]
    (tmp_path / "own.py").write_text("b = 1\n")
    found.append(source.code_hash())
    (tmp_path / "dtrain" / "notes.txt").write_text("no code\n")
    (tmp_path / "dtrain-1.dist-info").mkdir()
    assert found[0] != found[1] and source.code_hash() == found[0]
