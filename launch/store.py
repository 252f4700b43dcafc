"""What a sweep keeps on disk: sweeps/<id>/ with sweep.json, and one folder for each submission of its points.

submissions/<n>/submission.json, points/<index>.yaml (frozen configurations), points/<index>.events (what happened
to the point, one JSON line each), code/<hash>/ (the code that its jobs run), logs/<index>.log.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.config import ConfigError
from dtrain.files import append_line, read_lines, write_json
from launch.points import Point

ROOT = Path(__file__).resolve().parent.parent
_CODE = ("dtrain", "launch", "data_prep", "configs")


@dataclass(frozen=True)
class Entry:
    """A point as sweep.json keeps it. index: its place in the sweep, and its task in every array."""

    index: int
    values: dict[str, Any]
    signature: str
    run: Path


@dataclass(frozen=True)
class Submission:
    """One submission of some points. job: the array's id on SLURM, the scheduler's process id on this machine."""

    path: Path
    where: str
    indices: list[int]
    launcher: dict[str, Any]
    job: str
    host: str
    parallel: int

    @classmethod
    def open(cls, path: Path) -> Submission:
        """Reads submission.json."""
        return cls(path=path, **json.loads((path / "submission.json").read_text()))

    def write(self) -> None:
        """Writes submission.json."""
        content = {k: v for k, v in self.__dict__.items() if k != "path"}
        write_json(self.path / "submission.json", content)

    def config(self, index: int) -> Path:
        """The frozen configuration of a point."""
        return self.path / "points" / f"{index}.yaml"

    def cancelled(self, index: int) -> Path:
        """Exists once the point was cancelled: then it is not requeued."""
        return self.path / "points" / f"{index}.cancelled"

    def events(self, index: int) -> list[dict[str, Any]]:
        """What happened to the point so far, oldest first."""
        return read_lines(self.path / "points" / f"{index}.events")

    def last(self, index: int) -> dict[str, Any]:
        """The latest start or end of the point; {} before the first start."""
        return next((e for e in reversed(self.events(index)) if e["event"] in ("start", "end")), {})

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
            content = json.loads((path / "sweep.json").read_text())
        except FileNotFoundError as e:
            names = sorted(p.parent.name for p in path.parent.glob("*/sweep.json"))
            raise ConfigError(f"no sweep {path.name} in {path.parent}; it has: {', '.join(names) or 'none'}") from e
        points = [Entry(**{**p, "run": Path(p["run"])}) for p in content["points"]]
        return cls(path, content["keys"], points)

    @property
    def id(self) -> str:
        """The sweep's name in every command."""
        return self.path.name

    def submissions(self) -> list[Submission]:
        """Oldest first."""
        numbers = sorted(int(p.parent.name) for p in self.path.glob("submissions/*/submission.json"))
        return [Submission.open(self.path / "submissions" / str(n)) for n in numbers]

    def log(self, index: int) -> Path:
        """Everything that a point's jobs printed, over all restarts."""
        return self.path / "logs" / f"{index}.log"

    def new_submission(self) -> Path:
        """An empty folder for the next submission."""
        (self.path / "submissions").mkdir(exist_ok=True)
        used = [int(p.name) for p in (self.path / "submissions").iterdir()]
        path = self.path / "submissions" / str(max(used, default=0) + 1)
        (path / "points").mkdir(parents=True)
        return path


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
    """Copies the code to <sweep>/code/<hash>, so that editing the source does not change jobs that still wait."""
    files = sorted(ROOT.glob("*.py"))
    for folder in _CODE:
        files += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    target = sweep / "code" / digest.hexdigest()[:12]
    if not target.exists():
        work = target.with_name(f".{target.name}.{os.getpid()}")
        for file in files:
            copy = work / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        os.replace(work, target)
    return target
