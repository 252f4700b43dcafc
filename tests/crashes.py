"""Faults at every file operation of a command: it dies, or the disk refuses, at the n-th; then it is given again.

python -m tests.crashes             all of them, with the counts printed (make crash-test)
python -m tests.crashes --every 9   every ninth
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.arrays import array_source
from data_prep.verify import verify_split
from data_prep.writer import write_split
from tests.processes import launch
from tests.runs import execute, final_weights, freeze, status, write_shards

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
KINDS = ("crash", "torn", "ENOSPC", "EIO")


class Faults:
    """Hears of what this process does to the files below a folder, and does harm at the n-th time.

    crash: SIGKILL before the operation. torn: half of the file that is synced or renamed is gone, then SIGKILL, as if
    the process had died half-way through a write. ENOSPC, EIO: the operation fails.
    """

    def __init__(self, folder: Path, at: int | None, kind: str) -> None:
        self.folder, self.at, self.kind, self.count = str(folder), at, kind, 0
        fsync = os.fsync

        def heard(fd: int) -> None:
            self._hear(os.readlink(f"/proc/self/fd/{fd}"))
            fsync(fd)

        os.fsync = heard  # type: ignore[assignment]  # it has no audit event
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
        if changes or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            path = args[0]
            if isinstance(path, str | bytes | os.PathLike):
                self._hear(os.fsdecode(path))

    def _hear(self, path: str) -> None:
        if not os.path.abspath(path).startswith(self.folder):
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.kind in ("ENOSPC", "EIO"):
            raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)), path)
        if self.kind == "torn" and os.path.isfile(path):
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Scenario:
    """prepare: what lies in the folder before. act: the command. result: what must come out the same.

    world: ranks of the command; rank 0 meets the faults.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], Any]
    result: Callable[[Path], Any]
    world: int = 1


def attempt(act: Callable[[Path], Any], folder: Path, at: int | None, kind: str) -> int:
    """The command under a fault, in a process of its own and in silence: how many operations it came to."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    faults = Faults(folder, at, kind) if os.environ["RANK"] == "0" else None
    try:
        act(folder)
    except BaseException:  # a refused operation may end the command, as long as the next one puts it right
        if at is None:
            raise
    return faults.count if faults else 0


def tiny(folder: Path, *overrides: str) -> Path:
    return freeze(
        folder / "run", folder / "shards", "trainer.max_steps=6", "trainer.log_every=2", "trainer.checkpoint.every=2",
        "trainer.checkpoint.keep=1", "trainer.timeout=60", "evaluate.points=4", "evaluate.rows=2", *overrides,
        model={"_target_": "tests.stages.TwoStage", "width": 4},
    )  # fmt: skip


def with_shards(folder: Path) -> None:
    write_shards(folder / "shards")


LENGTHS = "trainer.max_steps={autoencoder: 4, generator: 2}"
JUDGED = (
    "trainer.evaluate_every=1", "trainer.patience={autoencoder: 2}", "optim.groups.autoencoder.lr=3.0",
    "trainer.checkpoint.best={autoencoder: objective}", "trainer.max_steps={autoencoder: 9, generator: 2}",
)  # fmt: skip


def train(folder: Path) -> int:
    return execute(tiny(folder, LENGTHS))


def train_by_patience(folder: Path) -> int:
    return execute(tiny(folder, *JUDGED))


def trained(folder: Path) -> dict[str, Any]:
    """The weights bit for bit, where the run ended, and that nothing of a fault lies about."""
    left = [p.name for p in (folder / "run").rglob("*") if p.suffix in (".tmp", ".incomplete", ".replaced")]
    state = {k: status(folder / "run")[k] for k in ("state", "step")}
    return {
        "left": left,
        **state,
        "weights": {k: v.numpy().tobytes() for k, v in final_weights(folder / "run").items()},
    }


def prepare_data(folder: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
    source = array_source(images, np.arange(40) % 10, {"what": "noise"}, None, "train")
    write_split(folder / "shards" / "train", source, ("npy", "tar"))


def prepared(folder: Path) -> dict[str, bytes]:
    assert not verify_split(folder / "shards" / "train")
    return {p.name: p.read_bytes() for p in sorted((folder / "shards" / "train").iterdir())}


def nothing(folder: Path) -> None:
    """A fresh start."""


SCENARIOS = {
    "run": Scenario(with_shards, train, trained),
    "run that ends by patience": Scenario(with_shards, train_by_patience, trained),
    "run of two ranks": Scenario(with_shards, train, trained, world=2),
    "data preparation": Scenario(nothing, prepare_data, prepared),
    "data preparation over an old split": Scenario(with_shards, prepare_data, prepared),
}


def count_and_expect(scenario: Scenario, folder: Path) -> tuple[int, Any]:
    """How many operations the undisturbed command takes, and its result."""
    scenario.prepare(folder)
    counts = launch(scenario.world, attempt, scenario.act, folder, None, "crash")
    return counts[0], scenario.result(folder)


def survives(scenario: Scenario, folder: Path, at: int, kind: str, expected: Any) -> bool:
    """Whether the same command, given again after the fault, ends with the expected result."""
    scenario.prepare(folder)
    launch(scenario.world, attempt, scenario.act, folder, at, kind, check=False)
    launch(scenario.world, attempt, scenario.act, folder, None, "crash")
    return bool(scenario.result(folder) == expected)


def points(count: int, every: int, offset: int) -> Iterator[tuple[int, str]]:
    """Every so many-th of all (operation, kind)."""
    pairs = [(at, kind) for at in range(1, count + 1) for kind in KINDS]
    yield from pairs[offset % every :: every]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th point")
    parser.add_argument("scenarios", nargs="*", help=f"of: {', '.join(SCENARIOS)} (default: all)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    begin = time.monotonic()
    for name in given.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        with tempfile.TemporaryDirectory() as folder:
            count, expected = count_and_expect(scenario, Path(folder) / "whole")
            for at, kind in points(count, given.every * scenario.world**2, 0):
                place = Path(folder) / f"{kind}{at}"
                try:
                    verdict = "" if survives(scenario, place, at, kind, expected) else "another result"
                except (AssertionError, TimeoutError) as e:  # what the command says when it is given again
                    verdict = str(e)
                if verdict:
                    wrong.append(f"{name}: {kind} at operation {at}")
                    print(f"DIFFERENT: {wrong[-1]}: {verdict}", flush=True)
                seen[name] += 1
                shutil.rmtree(place)
        print(f"{name}: {count} operations, {seen[name]} points tried", flush=True)
    good, minutes = seen.total() - len(wrong), (time.monotonic() - begin) / 60
    print(f"{good} of {seen.total()} points end with the same result ({minutes:.1f} min)")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
