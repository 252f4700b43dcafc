"""Successive halving: who goes on, whatever is killed meanwhile, and what becomes of the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.config import ConfigError
from dtrain.files import append_line, read_json
from launch import judge, local, submit
from launch.halving import Halving, asked_for, part, waiting
from launch.points import Point
from launch.settings import read_settings
from launch.standing import State
from launch.store import ROOT, Entry, Submission, SweepFolder
from tests.launch.bench import NOBODY, Bench
from tests.launch.support import until
from tests.launch.test_killed_submit import Killed, kill_after

STEPS = 9
# In the place of python -m dtrain: counts its steps, pauses, and evaluates as its configuration says.
TRAINING = """
import sys, time
from pathlib import Path
import yaml
from dtrain.files import append_line, read_json, write_json
from dtrain.length import pause_step
content = yaml.safe_load(Path(sys.argv[-1]).read_text())
folder, pause = Path(content["run"]["dir"]), pause_step(content["run"]["pause_at"], 9)
step = read_json(folder / "status.json").get("step", 0)
if (folder / "broken").exists():
    sys.exit(1)
while step < min(pause, 9):
    step += 1
    append_line(folder / "trained", {"step": step})
    while step > 1 and (folder.parent / "hold").exists():
        time.sleep(0.02)
    time.sleep(content["seconds"])
line = {"kind": "evaluation", "split": "valid", "step": step, "objective": content["score"]}
append_line(folder / "metrics.jsonl", line)
state = "paused" if step == pause else "finished"
write_json(folder / "status.json", {"state": state, "time": time.time(), "step": step, "max_steps": 9})
"""


class Halved(Bench):
    """Four settings, of which the first is the best, and so on; halved by 3."""

    training = TRAINING

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path, monkeypatch)
        self.values = [(key, 0) for key in range(4)]
        self.settings.sweep.halving = 3

    def points(self) -> list[Point]:
        return [
            Point({"key": key, "seed": seed}, point.config, self._yaml(i, key + 0.4 * seed), f"{i:010d}")
            for i, (point, (key, seed)) in enumerate(zip(super().points(), self.values, strict=True))
        ]

    def _code(self) -> Path:
        """A copy, and no links: the judge submits with the code that it runs with."""
        code = self.path / "code"
        if not code.exists():
            shutil.copytree(ROOT / "launch", code / "launch")
            (code / "dtrain").mkdir()
            for file in (ROOT / "dtrain").glob("*.py"):
                shutil.copyfile(file, code / "dtrain" / file.name)
            (code / "dtrain" / "configs").symlink_to(ROOT / "dtrain" / "configs")
            (code / "dtrain" / "__main__.py").write_text(self.training)
        return code

    def _yaml(self, index: int, score: float) -> str:
        content = {"run": {"dir": str(self.run(index)), "pause_at": None}, "seconds": self.seconds, "score": score}
        return yaml.safe_dump(content)

    def trained(self) -> list[int]:
        """The steps that each point was trained for, and none of them twice."""
        counts = []
        for i in range(len(self.values)):
            file = self.run(i) / "trained"
            lines = file.read_text().splitlines() if file.exists() else []
            assert lines == [json.dumps({"step": n + 1}) for n in range(len(lines))]
            counts.append(len(lines))
        return counts

    def reach(self, index: int, step: int, score: float) -> None:
        """A run that has paused at the step."""
        self.status(index, state="paused", step=step, max_steps=STEPS)
        line = {"kind": "evaluation", "split": "valid", "step": step, "objective": score}
        append_line(self.run(index) / "metrics.jsonl", line)

    def halving(self) -> Halving:
        found = Halving.open(self.folder)
        assert found is not None
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Halved]:
    """The sweep, whose processes are ended with the test."""
    made = Halved(tmp_path, monkeypatch)
    yield made
    made.end()


@pytest.fixture
def still(bench: Halved, monkeypatch: pytest.MonkeyPatch) -> Halved:
    """Nine settings with two seeds, all paused at the first rung; the scheduler was killed before it judged."""
    bench.values = [(key, seed) for key in range(9) for seed in range(2)]
    monkeypatch.setattr(local, "start", lambda *_: NOBODY)
    bench.sweep()
    for index, (key, seed) in enumerate(bench.values):
        bench.reach(index, 1, key + 0.4 * seed)
    return bench


def over(bench: Halved) -> bool:
    sweep = SweepFolder.open(bench.folder)
    return not waiting(sweep) and not any(s.name in ("pending", "starting", "running") for s in bench.states())


def test_the_better_third_goes_on_and_the_rest_is_paused_until_somebody_wants_it(bench: Halved) -> None:
    bench.run(1).mkdir(parents=True)
    (bench.run(1) / "broken").touch()
    printed = bench.sweep()
    assert "halving by 3: 4 to 1/9, 2 to 1/3, 1 to all of the steps, 39% of the grid's" in printed
    until(lambda: over(bench), 180, lambda: str(bench.names()))
    assert bench.trained() == [9, 0, 3, 1]
    assert bench.names() == ["finished", "failed", "paused", "paused"]
    assert bench.halving().judged == [[0, 2], [0]]
    assert [s.indices for s in bench.submissions] == [[0, 1, 2, 3], [0, 2], [0]]
    assert "1 of 1 points have come to all of the steps, judged by objective\n" in bench.jobs("status")

    (bench.run(1) / "broken").unlink()
    assert "submitted 1 points" in bench.jobs("retry")  # the failed one, to its rung
    until(lambda: over(bench), 120)
    assert "submitted 1 points" in bench.jobs("retry", "3")
    until(lambda: over(bench), 120)
    assert bench.trained() == [9, 1, 3, 9] and bench.names()[3] == "finished"
    assert "submitted 0 points" in bench.sweep()
    bench.settings.sweep.halving = None
    assert "submitted 2 points" in bench.sweep()
    until(lambda: set(bench.names()) == {"finished"}, 120)
    assert bench.trained() == [9] * 4


def test_a_scheduler_killed_in_mid_rung_leaves_what_the_same_command_continues(bench: Halved) -> None:
    hold = bench.path / "runs" / "hold"
    hold.parent.mkdir()
    hold.touch()
    bench.sweep()
    until(lambda: sum(bench.trained()) >= 5, 120)  # some are on their way to the second rung
    os.kill(int(bench.submissions[-1].job), signal.SIGKILL)
    hold.unlink()
    until(lambda: over(bench), 120)
    assert "the sweep's command continues it" in bench.jobs("status")
    bench.sweep()
    until(lambda: over(bench), 120, lambda: str(bench.names()))
    assert bench.trained() == [9, 3, 1, 1]


KILLS = {
    "the judgement was written": (Halving, "write", 1),
    "the next folder was made": (SweepFolder, "new_submission", 1),
    "the last configuration was named": (Submission, "config", 6),
    "the submission was written": (Submission, "write", 1),
    "an owner was written": (submit, "_own", 3),
    "the scheduler was started": (local, "start", 1),
}


@pytest.mark.parametrize("step", KILLS.values(), ids=KILLS.keys())
def test_a_judge_killed_at_any_step_is_made_up_for_by_the_same_command(
    still: Halved, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str, int]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, *step)
        judge.judge(still.folder)
    still.sweep()
    assert still.halving().judged == [list(range(6))]
    assert still.submissions[-1].indices == list(range(6))
    content = yaml.safe_load(still.submissions[-1].config(0).read_text())
    assert content["run"]["pause_at"] == pytest.approx(1 / 3)


def test_a_judge_that_was_killed_before_it_judged_is_the_command_itself(still: Halved) -> None:
    assert "the sweep's command continues it" in still.jobs("status")
    assert "submitted 6 points" in still.sweep()
    assert still.halving().judged == [list(range(6))]


def test_seeds_are_judged_together_and_what_is_no_number_is_out(still: Halved) -> None:
    still.reach(1, 1, float("nan"))  # setting 0: its other seed is the best of all
    append_line(still.run(2) / "metrics.jsonl", {"kind": "evaluation", "split": "valid", "step": 1, "objective": 50})
    judge.judge(still.folder)
    assert still.halving().judged == [[4, 5, 6, 7, 8, 9]]


def test_a_judgement_stays_as_it_was_and_another_way_is_refused(still: Halved) -> None:
    judge.judge(still.folder)
    still.reach(17, 1, -1.0)
    judge.judge(still.folder)
    assert still.halving().judged == [list(range(6))]
    for key, value in {"halving": 2, "rungs": 1, "objective": "mse/level1"}.items():
        other = read_settings([f"sweep.{key}={value}"]).sweep
        asked = asked_for(other.halving or 3, other.rungs, other.objective)
        still.settings.sweep.halving, still.settings.sweep.rungs = asked.by, asked.rungs
        still.settings.sweep.objective = asked.objective
        with pytest.raises(ConfigError, match=r"remove .*halving.json to judge anew"):
            still.sweep()


def test_a_point_that_was_stopped_is_waited_for_and_a_cancelled_sweep_is_not_judged(
    still: Halved, capsys: pytest.CaptureFixture[str]
) -> None:
    still.status(4, state="stopped", step=0, max_steps=STEPS)
    judge.judge(still.folder)
    assert "points [4] have ended too early; the sweep's command continues them" in capsys.readouterr().out
    still.reach(4, 1, 2.0)
    still.jobs("cancel")
    judge.judge(still.folder)
    assert still.halving().judged == []
    still.sweep()
    assert len(still.halving().judged) == 1 and not still.halving().halted


def test_nothing_to_judge_by_is_said(still: Halved) -> None:
    still.settings.sweep.objective = "mse/level1"
    with pytest.raises(ConfigError, match="--objective mse/level1: the runs have objective"):
        still.sweep()
    for index in range(18):
        still.reach(index, 1, float("inf"))
    with pytest.raises(ConfigError, match="no setting has a finite objective at 1/9 of the steps"):
        still.settings.sweep.objective = None
        (still.folder / "halving.json").unlink()
        still.sweep()


@pytest.mark.parametrize(
    ("settings", "said"),
    [((1, 2, None), "sweep.halving=1"), ((3, 0, None), "sweep.rungs=0"), ((3, 2, "score"), "sweep.objective score")],
)
def test_wrong_settings_are_refused(settings: tuple[int, int, str | None], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked_for(*settings)


def test_a_damaged_file_is_named(still: Halved) -> None:
    for text in (
        "",
        "[]",
        '{"by": "3"}',
        '{"by": 3, "rungs": 1, "judged": [[], [1]]}',
        '{"by": 3, "rungs": 2, "x": 1}',
    ):
        (still.folder / "halving.json").write_text(text)
        assert "halving.json is damaged: remove it" in still.jobs("status", check=2)


def test_the_grid_of_25_pairs_takes_27_percent_of_its_steps(tmp_path: Path) -> None:
    grid = [State(Entry(i, {"rec": i // 5, "match": i % 5}, "", tmp_path), "missing", {}, None) for i in range(25)]
    # 25 settings to 1/9 of the steps, 9 from there to 1/3, 3 from there to the end.
    assert part(asked_for(3, 2, None), grid) == pytest.approx((25 / 9 + 9 * 2 / 9 + 3 * 2 / 3) / 25)
    assert part(None, grid) == 1.0
    assert read_json(tmp_path / "halving.json") == {}
