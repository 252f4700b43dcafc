"""All that is worth running when a GPU is at hand, in the order of its value: correctness, speed, real training.

  python -m benchmarks.gpu --out gpu                        about 25 minutes; the same command goes on where it ended
  python -m benchmarks.gpu --out gpu --minutes 9            as many parts as fit, for now
  python -m benchmarks.gpu --out gpu --mnist shards/mnist --faces shards/celeba64       and train on these
  python -m benchmarks.gpu --out try --parts norms ranks --tiny

A part that has its result, --out/<part>.json, is not run again; one that failed is, after those that have none, and
a training goes on until its end. --out/table.md has all results, --out/<part>.log what a part has said, --out/runs
the folders of the training runs. Exit code 1 where a part has failed. --tiny: small networks, in seconds, on a CPU
too, where the parts that need a GPU are skipped. Steps captured as CUDA graphs are not measured: dtrain has none.

A machine without a network needs torch, and a folder of wheels made elsewhere for its Python, here 3.12:

  pip wheel --no-deps --wheel-dir wheels antlr4-python3-runtime==4.9.3
  pip install --target site --find-links wheels --only-binary=:all: --python-version 3.12 \\
      --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 hydra-core pydantic rich matplotlib tensorboard
  PYTHONPATH=.:site python -m benchmarks.gpu --out gpu && tar czf gpu.tgz --exclude checkpoints gpu
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import table
from dtrain.files import read_json, replace_text, write_json

ENOUGH = 10.0  # seconds that a part is begun with, at least
SAVING = 60.0  # seconds that a training gets to save when it is asked to stop
SERVER = multiprocessing.get_context("forkserver")
NO_START = {
    "state": "failed", "why": "its process did not start", "rows": [], "card": "?", "torch": "?", "date": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """function: of `module`, takes Given and yields rows. seconds: its limit; None shares what is left.

    data: the option that gives its folder, where it trains.
    """

    name: str
    module: str
    function: str
    seconds: float | None
    cuda: bool = True
    data: str | None = None
    argument: str | None = None

    def fed(self, given: Given) -> bool:
        """Whether it trains on data that are given, and perhaps were not before."""
        return self.data is not None and getattr(given, self.data) is not None


def _correct(name: str, seconds: float) -> Part:
    return Part(name, "benchmarks.gpu_claims", name, seconds)


MODELS = ("stackedwae", "stackedwae_svhn", "stackedwae_celeba", "wae_mmd", "swae_celeba")
PARTS = (
    _correct("noise", 30),
    _correct("no_sync", 150),
    _correct("parity", 120),
    _correct("norms", 45),
    _correct("ranks", 60),
    _correct("killed", 200),
    *(
        Part(f"speed_{m}", "benchmarks.gpu_speed", "speed", 180 if "celeba" in m else 120, cuda=False, argument=m)
        for m in MODELS
    ),
    Part("packed", "benchmarks.gpu_speed", "packed", 60, cuda=False),
    Part("deterministic", "benchmarks.gpu_speed", "deterministic", 120),
    Part("train_celeba10", "benchmarks.gpu_train", "one", None, False, "faces", "celeba10"),
    Part("train_swae", "benchmarks.gpu_train", "one", None, False, "faces", "swae_celeba"),
    Part("train_grid", "benchmarks.gpu_train", "grid", None, False, "mnist"),
)


@dataclass(frozen=True)
class Given:
    """What a part is told. deadline: of time.time(), when it must have ended."""

    out: Path
    tiny: bool
    faces: Path | None
    mnist: Path | None
    deadline: float = 0.0

    @property
    def left(self) -> float:
        return self.deadline - time.time()


def result(given: Given, part: Part) -> dict[str, Any]:
    """Of an earlier call, or of this one; {} if it has none."""
    return read_json(given.out / f"{part.name}.json")


def open_parts(given: Given, names: list[str]) -> list[Part]:
    """Those to run, in order: never run, failed, trainings."""
    states = {p: result(given, p).get("state") for p in PARTS if not names or p.name in names}
    found = [
        p for p, state in states.items() if state not in ("ok", "skipped") or (state == "skipped" and p.fed(given))
    ]
    return sorted(found, key=lambda p: (p.data is not None, states[p] is not None))


def limited(part: Part, given: Given, left: float, trainings: int) -> Given:
    """What the part is given of the seconds left. trainings: how many share what is left at the end."""
    if part.seconds is None:
        seconds = max(left / trainings - SAVING, ENOUGH)
    else:
        seconds = min(part.seconds * (10 if given.tiny else 1), left)  # a tiny one runs beside the other tests
    return Given(given.out, given.tiny, given.faces, given.mnist, time.time() + seconds)


def load() -> None:
    """Starts the server of the parts' processes, which loads torch: no part's time."""
    SERVER.set_forkserver_preload(["benchmarks.gpu_claims", "benchmarks.gpu_speed", "benchmarks.gpu_train"])
    process = SERVER.Process(target=time.time)
    process.start()
    process.join()


def _child(part: Part, given: Given) -> None:
    from benchmarks.gpu_part import child  # loads torch

    child(part, given)


def carry_out(part: Part, given: Given) -> None:
    """In a process of its own, forked from one that has torch loaded: no part can harm or outlast the rest."""
    process = SERVER.Process(target=_child, args=(part, given))
    process.start()
    try:
        process.join(max(given.left, 0))
        _end(process, signal.SIGTERM)  # a training saves
        process.join(SAVING)
    finally:
        _end(process, signal.SIGKILL)
        process.kill()  # it may not have a group yet
        process.join()


def _end(process: Any, number: signal.Signals) -> None:
    """All of the part's processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run(given: Given, minutes: float, names: list[str]) -> list[str]:
    """Runs what is open; returns the names of the parts that found no time."""
    end, todo = time.monotonic() + 60 * minutes, open_parts(given, names)
    if todo and minutes * 60 > ENOUGH:
        load()
    while todo:
        left = end - time.monotonic()
        if left < ENOUGH:
            break
        part = todo.pop(0)
        begin = time.monotonic()
        carry_out(part, limited(part, given, left, len(todo) + 1))
        found = result(given, part) or {**NO_START, "tiny": given.tiny}
        write_json(given.out / f"{part.name}.json", found)
        print(f"{part.name}: {found['state']} {found['why']} ({time.monotonic() - begin:.0f} s)", flush=True)
        replace_text(given.out / "table.md", table({p.name: result(given, p) for p in PARTS}))
    return [p.name for p in todo]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--parts", nargs="+", default=[], choices=[p.name for p in PARTS], metavar="PART")
    parser.add_argument("--faces", type=Path, help="prepared faces of 64 x 64")
    parser.add_argument("--mnist", type=Path, help="prepared digits of 28 x 28")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    for option in ("faces", "mnist"):
        folder = getattr(arguments, option)
        if folder is not None and not (folder / "train").is_dir():
            parser.error(f"--{option} {folder}: has no split train; prepare it with python -m data_prep")
    arguments.out.mkdir(parents=True, exist_ok=True)
    faces, mnist = (folder and folder.resolve() for folder in (arguments.faces, arguments.mnist))
    given = Given(arguments.out.resolve(), arguments.tiny, faces, mnist)
    if late := run(given, arguments.minutes, arguments.parts):
        print(f"no time was left for {', '.join(late)}: the same command runs them")
    if (given.out / "table.md").exists():
        print((given.out / "table.md").read_text())
    return int(any(result(given, p).get("state") == "failed" for p in PARTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
