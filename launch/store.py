"""What a sweep keeps on disk: sweeps/<id>/ with sweep.json, and one folder for each submission of its points.

submissions/<n>/submission.json, points/<index>.yaml (frozen configurations), points/<index>.events (what happened
to the point, one JSON line each), packs.json (which points are trained together, if any are), alive (touched by a
local scheduler while it lives); code/<hash>-<hash>/ (the code that jobs run), logs/<index>.log.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.config import ConfigError
from dtrain.files import append_line, read_json, read_lines, write_json
from dtrain.source import ROOT, beside, code_hash, digest
from launch.points import Point
from launch.settings import program

FRESH = 30.0  # seconds that a heartbeat counts
SKEW = 5.0  # seconds that another machine's clock may be ahead
_CODE = ("dtrain", "dtrain/configs", "launch", "data_prep")
# What must be in a submission.json, and what may be in a status.json.
_FIELDS = {"where": str, "indices": list, "launcher": dict, "job": str, "host": str, "parallel": int}
_JOB = r"|[^ +]+(\+[0-9]+)?( [^ +]+\+[0-9]+)*"
_TEXTS, _COUNTS = ("state", "error"), ("step", "max_steps", "starts")
_NUMBERS = ("time", "eta_s", "images_per_s", "seconds")


def fresh(when: float, seconds: float = FRESH) -> bool:
    """Whether a heartbeat of that time counts. One from the future, of a clock that was set back, does not."""
    return -SKEW <= time.time() - when < seconds


def read_status(run: Path) -> dict[str, Any]:
    """A run's status.json, without what in it is damaged."""
    found = read_json(run / "status.json")
    right: dict[str, Any] = {k: v for k in _TEXTS if isinstance(v := found.get(k), str)}
    right |= {k: v for k in _COUNTS if isinstance(v := found.get(k), int) and abs(v) < 2**63}
    right |= {k: v for k in _NUMBERS if isinstance(v := found.get(k), int | float) and abs(v) < 2**63}  # and not NaN
    return right | {k: v for k in ("loss",) if isinstance(v := found.get(k), float)}


def touched(path: Path) -> float:
    """When a file was last written; 0 if there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


@dataclass(frozen=True)
class Entry:
    """A point as sweep.json keeps it. index: its place in the sweep."""

    index: int
    values: dict[str, Any]
    signature: str
    run: Path


@dataclass(frozen=True)
class Submission:
    """One submission of some points.

    job: on this machine the scheduler's process id; on SLURM the array's id, or of several arrays "4711 4712+1001 …",
    each with the index of the point that is its task 0.
    """

    path: Path
    where: str
    indices: list[int]
    launcher: dict[str, Any]
    job: str
    host: str
    parallel: int

    @classmethod
    def open(cls, path: Path) -> Submission:
        """Reads submission.json. Raises ConfigError."""
        content = read_json(path / "submission.json")
        right = content.keys() == _FIELDS.keys() and all(isinstance(content[k], t) for k, t in _FIELDS.items())
        right = right and re.fullmatch(_JOB, content["job"]) is not None
        if not right or content["where"] not in ("slurm", "local") or not _all(content["indices"], int):
            raise ConfigError(f"{path / 'submission.json'} is missing or damaged")
        return cls(path=path, **content)

    def write(self) -> None:
        """Writes submission.json."""
        content = {k: v for k, v in self.__dict__.items() if k != "path"}
        write_json(self.path / "submission.json", content)

    def started_as(self, job: str) -> Submission:
        """Notes the job's id, if there is one."""
        if not job:
            return self
        found = replace(self, job=job)
        found.write()
        return found

    @property
    def arrays(self) -> list[tuple[str, int]]:
        """On SLURM: (array id, the point that is its task 0) of each, in order."""
        found = [word.partition("+") for word in self.job.split()]
        return [(job, int(first or 0)) for job, _, first in found]

    @property
    def shared(self) -> int:
        """Points that run on a GPU at the same time."""
        count = self.launcher.get("points_per_gpu")
        return count if isinstance(count, int) and count > 1 else 1

    def together(self, index: int) -> list[int]:
        """On SLURM: the points of the task that runs this one, which is numbered by the first of them."""
        if self.shared == 1:
            return self.pack(index)
        at = bisect.bisect_left(self.indices, index) // self.shared * self.shared
        return self.indices[at : at + self.shared] or [index]

    def task(self, index: int) -> tuple[str, int]:
        """On SLURM: (array id, task) of a point."""
        index = self.together(index)[0]
        job, first = next(((j, f) for j, f in reversed(self.arrays) if f <= index), ("", 0))
        return job, index - first

    def pack(self, index: int) -> list[int]:
        """The points that are trained with a point in one process, itself included; the first gives the task."""
        return _packs(self.path).get(index, [index])

    @property
    def leaders(self) -> list[int]:
        """The first points of all packs, and those that are in none, ascending."""
        return [i for i in self.indices if self.pack(i)[0] == i]

    def config(self, index: int) -> Path:
        """The frozen configuration of a point."""
        return self.path / "points" / f"{index}.yaml"

    def log(self, index: int) -> Path:
        """Everything that a point's jobs printed, over all restarts; of a pack one for all."""
        return self.path.parents[1] / "logs" / f"{self.pack(index)[0]}.log"

    def cancelled(self, index: int) -> Path:
        """Exists once the point was cancelled: then it is not requeued."""
        return self.path / "points" / f"{index}.cancelled"

    def events(self, index: int) -> list[dict[str, Any]]:
        """What happened to the point so far, oldest first."""
        return read_lines(self.path / "points" / f"{index}.events")

    def last(self, index: int) -> dict[str, Any]:
        """The latest start or end of the point; {} before the first start."""
        return next((e for e in reversed(self.events(index)) if e.get("event") in ("start", "end")), {})

    def over(self, index: int) -> bool:
        """Whether the task of a point need not run it any more, whatever becomes of the others in it."""
        last = (self.events(index) or [{}])[-1].get("event")
        return self.cancelled(index).exists() or last in ("end", "elsewhere")

    def add_event(self, index: int, event: str, **facts: Any) -> None:
        """Appends one event of a point."""
        line = {"event": event, "time": time.time(), "host": platform.node(), **facts}
        append_line(self.path / "points" / f"{index}.events", line)


@dataclass(frozen=True)
class SweepFolder:
    """A sweep on disk."""

    path: Path
    keys: list[str]
    points: list[Entry]

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """Reads sweep.json. Raises ConfigError naming the sweeps that there are."""
        try:
            there = (path / "sweep.json").exists()
        except (OSError, ValueError):  # no name that a file could have
            there = False
        if not there:
            names = sorted(p.parent.name for p in path.parent.glob("*/sweep.json"))
            raise ConfigError(f"no sweep {path.name} in --dir {path.parent}; it has: {', '.join(names) or 'none'}")
        content = read_json(path / "sweep.json")
        try:
            keys, points = content["keys"], [Entry(**{**p, "run": Path(p["run"])}) for p in content["points"]]
            whole = bool(points) and all(p.index == i and p.values.keys() == set(keys) for i, p in enumerate(points))
            whole &= not any(isinstance(v, list | dict) for p in points for v in p.values.values())
        except (KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ConfigError(
                f"{path / 'sweep.json'} is damaged: remove it, and the sweep's {program('sweep')} command "
                "writes it again; the runs and their states stay"
            )
        return cls(path, keys, points)

    @property
    def id(self) -> str:
        """The sweep's name in every command."""
        return self.path.name

    def submissions(self) -> list[Submission]:
        """Oldest first, without damaged ones."""
        found = []
        for _, path in sorted(self._folders().items()):
            with contextlib.suppress(ConfigError):
                found.append(Submission.open(path))
        return found

    def config(self, index: int) -> Path | None:
        """The newest frozen configuration of a point, be its submission damaged or not."""
        files = [path / "points" / f"{index}.yaml" for _, path in sorted(self._folders().items())]
        return next((f for f in reversed(files) if f.is_file()), None)

    def _folders(self) -> dict[int, Path]:
        """The submissions' folders by number, among whatever else lies there."""
        try:
            names = [p for p in (self.path / "submissions").iterdir() if re.fullmatch("[1-9][0-9]{0,8}", p.name)]
        except OSError:
            return {}
        return {int(p.name): p for p in names}

    def log(self, index: int) -> Path:
        """Everything that a point's jobs printed, over all restarts."""
        return self.path / "logs" / f"{index}.log"

    def new_submission(self) -> Path:
        """An empty folder for the next submission."""
        (self.path / "submissions").mkdir(exist_ok=True)
        path = self.path / "submissions" / str(max(self._folders(), default=0) + 1)
        (path / "points").mkdir(parents=True)
        return path


@functools.lru_cache(maxsize=256)
def _packs(submission: Path) -> dict[int, list[int]]:
    """Of packs.json, which is written before a submission is: the pack of each point that is in one."""
    found = read_json(submission / "packs.json").get("packs", [])
    packs = [pack for pack in found if isinstance(pack, list) and pack and _all(pack, int)]
    return {index: pack for pack in packs for index in pack}


def _all(values: list[Any], kind: type) -> bool:
    return all(isinstance(v, kind) for v in values)


def sweep_id(points: list[Point], name: str) -> str:
    """The same for the same set of runs, so that the same command always means the same sweep."""
    content = "\n".join(sorted(f"{p.signature} {p.run}" for p in points))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "sweep"
    return f"{plain}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def open_sweep(path: Path, points: list[Point], command: list[str]) -> SweepFolder:
    """The sweep's folder, made if this is the first time."""
    if not (path / "sweep.json").exists():
        (path / "logs").mkdir(parents=True, exist_ok=True)
        entries = [
            {"index": i, "values": p.values, "signature": p.signature, "run": str(p.run)}
            for i, p in enumerate(points)
        ]
        keys = list(points[0].values)
        write_json(path / "sweep.json", {"command": command, "time": time.time(), "keys": keys, "points": entries})
    return SweepFolder.open(path)


def snapshot(sweep: Path) -> Path:
    """Copies the code to <sweep>/code/<hash>-<hash>, so that editing the source does not change jobs that still wait.

    The first is that of `code_hash`, which runs note; the second one of all files, configurations and launcher too.
    """
    files = beside()
    for folder in _CODE:
        files += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    target = sweep / "code" / f"{code_hash()}-{digest(files)}"
    if not target.exists():
        work = target.with_name(f".{target.name}.{os.getpid()}")
        for file in files:
            copy = work / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        os.replace(work, target)
    return target
