"""Submit the points of a sweep that are neither done nor under way, on SLURM or on this machine."""

from __future__ import annotations

import contextlib
import platform
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.config import Config, ConfigError
from dtrain.files import read_json, write_json
from launch import arrays, local, slurm
from launch.halving import Halving
from launch.settings import Launcher, launcher_from
from launch.standing import ACTIVE, State
from launch.store import Submission, SweepFolder, read_status, snapshot


def where(asked: str) -> str:
    """slurm or local, for sweep.where; says what auto chose. ConfigError if SLURM is asked for and not there."""
    if asked == "slurm" and not slurm.available():
        raise ConfigError("there is no sbatch in PATH: load your cluster's module, or choose sweep.where=local")
    if asked != "auto":
        return asked
    if not slurm.available():
        place, why = "local", "no sbatch in PATH"
    elif not slurm.answers():
        place, why = "local", "sbatch, but no cluster answers"
    else:
        place, why = "slurm", "a cluster answers"
    print(f"sweep.where=auto: {place} ({why})")
    return place


def resources(launcher: Launcher, place: str, devices: set[str]) -> Launcher:
    """What each run gets, with this machine's GPUs. devices: the runs' trainer.device. Raises ConfigError."""
    launcher = local.fitted(launcher, devices) if place == "local" else launcher
    launcher.check_shared()
    return launcher


def spread(launcher: Launcher, place: str, parallel: int | None) -> str:
    """How many points run at a time, and on how many GPUs, for the plan. Raises ConfigError as `local.places`."""
    shared = f", up to {launcher.points_per_gpu} on each" if launcher.points_per_gpu > 1 else ""
    if place == "slurm":
        return shared
    places = local.places(launcher, parallel)
    return f", {places} at a time" + (f" on {len(local.gpus())} GPUs{shared}" if launcher.gpus else "")


def to_submit(states: list[State]) -> list[State]:
    """The points that are neither finished nor waiting or running somewhere."""
    return [s for s in states if s.name != "finished" and s.name not in ACTIVE]


def submit(
    sweep: SweepFolder, yamls: dict[int, str], launcher: Launcher, place: str, parallel: int | None,
    packs: Sequence[Sequence[int]] = (),
) -> Submission:  # fmt: skip
    """Submits points, given as index -> frozen configuration. Raises ConfigError; then none runs.

    packs: the indices of those that are trained together; others are on their own.
    """
    path = sweep.new_submission()
    indices = sorted(yamls)
    slots = local.places(launcher, parallel) if place == "local" else launcher.array_parallelism
    submission = Submission(path, place, indices, launcher.public(), "", platform.node(), slots)
    for index in indices:
        submission.config(index).write_text(yamls[index])
    if packs:
        write_json(path / "packs.json", {"packs": [list(pack) for pack in packs]})
    code = snapshot(sweep.path)
    # All of this before anything starts: whoever comes next finds out by it, should this process be killed.
    submission.write()
    before = {index: read_json(sweep.points[index].run / "owner.json") for index in indices}
    try:
        for index in indices:
            _own(sweep.points[index].run, {"submission": str(path), "index": index})
        if place == "slurm":
            job = arrays.submit(submission, launcher, code)
        else:
            job = str(local.start(path, code, sweep.path / "logs" / "local.log"))
    except ConfigError:
        shutil.rmtree(path, ignore_errors=True)
        for index in indices:
            _give_back(sweep.points[index].run, before[index])
        raise
    submission = submission.started_as(job)
    if place == "slurm":
        follow(sweep, submission)
    return submission


def follow(sweep: SweepFolder, submission: Submission) -> None:
    """Lets a job judge the present rung of a halving sweep once the submission's arrays have ended.

    On this machine the scheduler does so.
    """
    halving = Halving.open(sweep.path)
    if halving is None or halving.halted or halving.share is None:
        return
    launcher, log = launcher_from(submission.launcher), sweep.path / "logs" / "judge.log"
    arrays_ids = [job for job, _ in submission.arrays]
    folder = sweep.path / "judge"  # not the submission's: by the scripts in that its arrays are found
    folder.mkdir(exist_ok=True)
    try:
        executor = slurm.ArrayExecutor(folder, launcher.max_num_timeout)
        job = executor.submit_judge(launcher, arrays_ids, log, snapshot(sweep.path), sweep.path)
    except ConfigError as e:
        print(f"the rung will not be judged by itself, the sweep's command does it: {e}")
        return
    replace(halving, judge=job).write(sweep.path)


def _own(run: Path, owner: dict[str, Any]) -> None:
    """Notes who a run belongs to. Raises ConfigError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "owner.json", owner)
    except OSError as e:
        raise ConfigError(f"{run}: cannot be written ({e})") from e


def _give_back(run: Path, owner: dict[str, Any]) -> None:
    """Notes the owner before, or that there was none."""
    with contextlib.suppress(ConfigError, OSError):
        if owner:
            _own(run, owner)
        else:
            (run / "owner.json").unlink(missing_ok=True)
            run.rmdir()  # unless it holds more


@dataclass(frozen=True)
class Estimate:
    """Hours of `unit` that the points to submit will take at `speed` images/s; 0 without a known speed."""

    speed: float
    hours: float
    unit: str

    def __str__(self) -> str:
        if not self.speed:
            return "unknown: no earlier run gives a speed; sweep.pilot=<images/s of one run> does"
        return f"{self.hours:,.2f} {self.unit}-hours at {self.speed:,.0f} images/s"


def estimate(
    todo: list[State], configs: dict[int, Config], launcher: Launcher, pilot: float | None, part: float = 1.0
) -> Estimate:
    """From sweep.pilot, or the median speed of runs of the same model on the same data. part: of the steps."""
    unit, count = "GPU", launcher.gpus / launcher.points_per_gpu
    if not launcher.gpus:
        unit, count = "process", launcher.ranks
    images = part * sum(_left(configs[state.entry.index], state.status) for state in todo)
    speed = pilot or _speed({s.entry.run for s in todo})
    return Estimate(speed, images / speed / 3600 * count if speed else 0.0, unit)


def _left(config: Config, status: dict[str, Any]) -> float:
    """Images that a point has yet to train on."""
    key, length = config.trainer.length
    count = length if isinstance(length, int) else sum(length.values())
    if key == "max_steps":
        return (count - status.get("step", 0)) * config.trainer.batch_size
    images = read_json(config.data.path / config.data.train / "manifest.json").get("count", 0)
    return count * images * (1 - status.get("step", 0) / status.get("max_steps", 1))


def _speed(runs: set[Path]) -> float:
    """Median images/s over finished and running siblings: folders with the same name but for the hash."""
    families = {run.with_name(run.name.rpartition("-")[0]) for run in runs}
    found = [
        float(speed)
        for family in families
        for sibling in family.parent.glob("*/status.json")
        if sibling.parent.name.rpartition("-")[0] == family.name
        and (speed := read_status(sibling.parent).get("images_per_s", 0.0)) > 0
    ]
    return statistics.median(found) if found else 0.0
