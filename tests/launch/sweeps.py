"""Sweeps that share runs, whose training counts steps, and the processes that carry them out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain.files import read_json
from launch.points import Point
from launch.store import sweep_id
from tests.launch.bench import Bench

# Saves each step, says how it goes, and stops on request, like a run. Notes what must not happen in `wrong`.
TRAINING = """
import contextlib, os, signal, sys, time
from pathlib import Path
from dtrain.files import STOPPED, held, read_json, replace_text, write_json

folder, steps = Path(sys.argv[-1]).read_text().split("\\n")
folder, steps, asked = Path(folder), int(steps), []
if read_json(folder / "status.json").get("state") == "finished":
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))


def say(state, **more):
    status = {"state": state, "step": step, "max_steps": steps, "time": time.time()}
    write_json(folder / "status.json", status | more)


def wrong(what):
    with (folder / "wrong").open("a") as f:
        f.write(f"{what} {os.getpid()} {time.time():.1f}\\n")


with held(folder / "running.lock", str(os.getpid()), lambda _: 5.0) as holder:
    if holder is not None:
        sys.exit(f"being trained by {holder}")
    other = folder / "training"
    with contextlib.suppress(OSError):
        if Path("/proc", other.read_text(), "cmdline").read_bytes():  # empty once it has ended
            wrong("two at once")
    if (folder / "done").exists():
        wrong("again")
    replace_text(other, str(os.getpid()))
    step = int((folder / "saved").read_text()) if (folder / "saved").exists() else 0
    while step < steps and not (folder.parent / "enough").exists():
        say("running")
        if asked:
            say("stopped")
            other.unlink()
            sys.exit(STOPPED)
        if (folder / "broken").exists():
            say("failed", error="broken")
            other.unlink()
            sys.exit(1)
        time.sleep(0.1)
        step += 1
        replace_text(folder / "saved", str(step))
    (folder / "done").touch()
    other.unlink()
    say("finished")
"""


@dataclass(frozen=True, order=True)
class Process:
    """A scheduler, job or training. run: the name of the run that it is for."""

    kind: str
    pid: int
    run: str = ""


class Sweeps(Bench):
    """Several sweeps over the same runs, each of which belongs to one value."""

    training = TRAINING
    steps = (5, 6000, 6000)  # of a tenth of a second

    def points(self) -> list[Point]:
        named = zip(super().points(), self.values, strict=True)
        return [self._named(point, value) for point, value in named]

    def _named(self, point: Point, value: int) -> Point:
        config = point.config.model_copy(update={"run": point.config.run.model_copy(update={"name": f"run-{value}"})})
        return Point(point.values, config, f"{self.run(value)}\n{self.steps[value]}", str(value) * 10)

    @property
    def folder(self) -> Path:
        return self.path / "sweeps" / sweep_id(self.points(), "run")

    def processes(self) -> list[Process]:
        """Those of all sweeps that are alive."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().split("\0")
                if kind := next((k for k in ("launch.local", "launch.job", "dtrain") if k in words), None):
                    found += self._process(kind, int(process.name), words)
        return sorted(found)

    def _process(self, kind: str, pid: int, words: list[str]) -> Iterator[Process]:
        ours = [w for w in words if w.startswith(f"{self.path}/sweeps/")]
        if ours and kind == "launch.local":
            yield Process(kind, pid)
        elif ours:
            path = Path(ours[0])
            index = int(words[words.index(ours[0]) + 1] if kind == "launch.job" else path.stem)
            points = read_json(Path(*path.parts[: len(self.path.parts) + 2]) / "sweep.json")["points"]
            yield Process(kind, pid, Path(points[index]["run"]).name)
