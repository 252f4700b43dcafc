"""Points and GPUs: one each by default where a machine has some, and several on one where they are to share it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.config import ConfigError
from dtrain.files import STOPPED
from launch import arrays, local, slurm
from launch.settings import Launcher, read_settings
from launch.submit import resources, spread
from tests.launch.bench import TRAINING, Bench, bench
from tests.launch.support import until
from tests.launch.sweeps import Sweeps

__all__ = ["bench"]

# Notes the GPUs that it was given, and when it began and ended. Waits for as many others as may run beside it, so
# that they are seen together however slowly a process starts, and then its seconds, in which one too many would show.
NOTING = (
    TRAINING.replace("import json, sys", "import json, os, sys")
    .replace(
        "time.sleep(",
        """
begin = time.time()
(Path(folder) / "begun").touch()
while len(list(Path(folder).parent.glob("*/begun"))) < {together} and time.time() < begin + 30:
    time.sleep(0.02)
time.sleep(""",
    )
    .replace(
        "status = {",
        'note = [os.environ.get("CUDA_VISIBLE_DEVICES"), begin, time.time()]\n'
        '(Path(folder) / "gpus.json").write_text(json.dumps(note))\nstatus = {',
    )
)


@pytest.fixture
def gpus(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Three points of half a second on a machine whose nvidia-smi lists two GPUs; two wait for each other."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-0)'\necho 'GPU 1: H200 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    bench.training, bench.values, bench.seconds = NOTING.replace("{together}", "2"), list(range(3)), 0.5
    bench.settings.sweep.parallel = None
    return bench


def placed(bench: Bench) -> list[tuple[str | None, float, float]]:
    """Each point's CUDA_VISIBLE_DEVICES, begin and end, once all have finished."""
    assert bench.finish() == [1] * len(bench.values)
    return [tuple(json.loads((bench.run(i) / "gpus.json").read_text())) for i in range(len(bench.values))]


def most_at_once(spans: list[tuple[str | None, float, float]]) -> int:
    return max(sum(a <= begin < b for _, a, b in spans) for _, begin, _ in spans)


def test_each_run_gets_a_gpu_of_its_own_where_nothing_is_said(gpus: Bench) -> None:
    assert "1 GPU(s), on local, 2 at a time on 2 GPUs\n" in gpus.sweep()
    spans = placed(gpus)
    assert Counter(gpu for gpu, _, _ in spans).keys() == {"0", "1"}
    assert all(most_at_once([s for s in spans if s[0] == gpu]) == 1 for gpu in "01")
    assert most_at_once(spans) == 2


def test_points_share_a_gpu_as_many_as_are_asked_for(gpus: Bench) -> None:
    gpus.settings.launcher.points_per_gpu = 2
    gpus.settings.sweep.parallel = 3
    gpus.training = NOTING.replace("{together}", "3")
    said = gpus.sweep()
    assert "3 at a time on 2 GPUs, up to 2 on each" in said and "points_per_gpu=2" in said
    spans = placed(gpus)
    assert most_at_once(spans) == 3
    assert sorted(most_at_once([s for s in spans if s[0] == gpu]) for gpu in "01") == [1, 2]


def test_the_gpus_that_this_shell_may_use_are_those_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, gpus in (("3,5,7", 3), ("3,-1,7", 1), ("-1", 0), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        launcher = resources(Launcher(), "local", {"auto"})
        cores = len(os.sched_getaffinity(0))
        assert spread(launcher, "local", None) == (
            f", {gpus} at a time on {gpus} GPUs" if gpus else f", {cores} at a time"
        )


def test_runs_on_the_cpu_and_those_that_ask_for_no_gpu_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert local.fitted(Launcher(), {"cpu"}).gpus == 0
    assert local.fitted(Launcher(), {"cpu", "auto"}).gpus == 1
    assert local.fitted(Launcher(gpus_per_node=0), {"auto"}).gpus == 0
    assert local.fitted(Launcher(tasks_per_node=2), {"auto"}).gpus == 2  # a GPU for each rank


@pytest.mark.parametrize(
    "launcher",
    [Launcher(points_per_gpu=2), Launcher(points_per_gpu=2, gpus_per_node=2), Launcher(points_per_gpu=2, nodes=2)],
)
def test_only_runs_of_one_process_on_one_gpu_share_it(launcher: Launcher) -> None:
    with pytest.raises(ConfigError, match=r"points_per_gpu=2: only runs of one process on one GPU"):
        resources(launcher, "slurm", {"auto"})
    with pytest.raises(ConfigError, match=r"points_per_gpu=0: must be at least 1"):
        read_settings(["launcher.points_per_gpu=0"])


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeps]:
    """Three points of minutes as one task of a SLURM array that nobody has started yet."""
    sweeps = Sweeps(tmp_path, monkeypatch)
    sweeps.steps = (6000, 6000, 6000)
    sweeps.settings.sweep.where = "slurm"
    sweeps.settings.launcher = Launcher(cpus_per_task=1, gpus_per_node=1, points_per_gpu=3)
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(arrays, "submit", lambda *_: "7")
    sweeps.sweep()
    yield sweeps
    (tmp_path / "runs" / "enough").touch()


def test_points_of_a_task_end_by_themselves_and_save_together(task: Sweeps) -> None:
    (submission,) = task.submissions
    assert [submission.task(i) for i in (0, 1, 2)] == [("7", 0)] * 3
    environment = {**os.environ, "PYTHONPATH": str(task.path / "code"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "launch.shared", "step", str(submission.path), "0", "1", "2"]
    with subprocess.Popen(command, env=environment, cwd=task.path) as step:
        try:
            until(lambda: all((task.run(i) / "saved").exists() for i in (0, 1, 2)), 120)
            (task.run(0) / "broken").touch()
            submission.cancelled(1).touch()
            until(lambda: all(map(submission.over, (0, 1))) and submission.last(1)["event"] == "end", 120)
            assert step.poll() is None and submission.last(2)["event"] == "start"
            step.send_signal(signal.SIGUSR2)
            assert step.wait(60) == STOPPED
        finally:
            step.terminate()
    events = [[e.get("how", e["event"]) for e in submission.events(i)] for i in (0, 1, 2)]
    assert events == [["start", "failed"], ["start", "stopped"], ["start", "stopped", "requeue"]]
    assert [submission.over(i) for i in (0, 1, 2)] == [True, True, False]
    assert all(submission.log(i).exists() for i in (0, 1, 2))
