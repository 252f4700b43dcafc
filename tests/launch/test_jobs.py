"""What jobs.py says of sweeps: their counts, what a heartbeat tells of a run, and why a point has failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dtrain.log import Log
from launch.store import ROOT, read_status
from tests.launch.bench import Bench, bench, still

__all__ = ["bench", "still"]


def test_list_counts_and_why_tells(still: Bench) -> None:
    still.submissions[0].log(2).write_text("".join(f"line {n}\n" for n in range(9)))
    assert f"{still.folder.name}: 3 points, 2 finished, 1 failed" in still.jobs("list").splitlines()
    said = still.jobs("why", "--lines=2").splitlines()
    assert "== 2: key=2 (failed: NonFinite)" in said[0] and said[1:] == ["line 7", "line 8"]
    assert "== 0: key=0 (finished)" in still.jobs("why", "0")
    still.status(2, state="finished", step=2, max_steps=2, starts=3, seconds=7200.0, images_per_s=1234.0)
    assert still.jobs("why") == "no point has failed\n"
    row = still.jobs("status", "2").splitlines()[1].split()
    assert row == ["2", "2", "finished", "2/2", "1,234", "2:00:00", "2", "unknown"]


def test_a_reader_that_has_gone_is_no_error(still: Bench) -> None:
    words = [
        sys.executable,
        str(ROOT / "launch" / "jobs.py"),
        "status",
        still.folder.name,
        "--dir",
        str(still.folder.parent),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout and command.stderr
        command.stdout.close()
        assert command.stderr.read() == "" and command.wait(60) == 0


def test_the_heartbeat_counts_the_starts_and_the_seconds_of_all_of_them(tmp_path: Path) -> None:
    seconds = 0.0
    for start in (1, 2, 3):
        log = Log(tmp_path, 5, main=True)
        log.start(step=0, bar=False)
        log._begun -= 100
        log.beat(1, state="running")
        log.close()
        status = read_status(tmp_path)
        assert status["starts"] == start and 99 <= status["seconds"] - seconds < 150
        seconds = status["seconds"]
