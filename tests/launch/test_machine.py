"""Whatever is done to sweeps in any order: no point is lost, run twice, run by two at once, or left running.

Real schedulers, jobs and training processes; the training counts steps. Heartbeats count for 2 seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from launch import store
from launch.standing import ACTIVE
from tests.launch.support import until
from tests.launch.sweeps import Sweeps
from tests.launch.test_killed_submit import STEPS, Killed, kill_after

COMMANDS = [(0, 1), (0, 1, 2), (1, 2)]  # sweeps that share runs
FRESH = 2.0  # seconds that a heartbeat counts
FILES = {
    "status": "runs/*/status.json",
    "owner": "runs/*/owner.json",
    "lock": "runs/*/*lock",
    "submission": "sweeps/*/submissions/*/submission.json",
    "events": "sweeps/*/submissions/*/points/*.events",
    "alive": "sweeps/*/submissions/*/alive",
}
STRAYS = [
    "runs/*",
    "sweeps",
    "sweeps/*",
    "sweeps/*/submissions",
    "sweeps/*/submissions/*",
    "sweeps/*/submissions/*/points",
]
WAITS = st.sampled_from([0.0, 0.2, 0.5, 1.0])
ANY = st.integers(0, 5)  # one of those that there are


class Machine(RuleBasedStateMachine):
    """What people, machines and disks do to sweeps on one machine."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.path = Path(tempfile.mkdtemp(prefix="machine-"))
        self.bench = Sweeps(self.path, self.patch)
        self.patch.setattr(store.fresh, "__defaults__", (FRESH,))
        self.known: list[tuple[int, ...]] = []
        self.damaged: set[str] = set()  # runs whose status was: they may run again
        self.strays: set[str] = set()  # runs where who runs them was damaged since, and cancel may not reach
        self.said: list[str] = []

    def choose(self, values: tuple[int, ...]) -> None:
        """Makes the bench's commands those of one sweep."""
        self.bench.values = list(values)

    def names(self) -> dict[str, str]:
        """What the launcher says of each run."""
        found = {}
        for values in self.known:
            self.choose(values)
            if self.bench.folder.exists():
                found |= {s.entry.run.name: s.name for s in self.bench.states()}
        return found

    def explain(self) -> str:
        """All that happened, and how it stands."""
        events, logs = self.path.glob("sweeps/*/submissions/*/points/*.events"), self.path.glob("*/*/logs/*")
        files = [*events, *logs]
        texts = [f"{f.relative_to(self.path)}: {f.read_text(errors='replace')}" for f in sorted(files)]
        return "\n".join([*self.said, str(self.names()), *map(str, self.bench.processes()), *texts])

    def did(self, what: str) -> None:
        """Notes it for explain."""
        self.said.append(f"{time.time():.1f} {what}")

    @initialize(values=st.sampled_from(COMMANDS), parallel=st.sampled_from([1, 3]), wait=WAITS)
    def first(self, values: tuple[int, ...], parallel: int, wait: float) -> None:
        self.submit(values, parallel, wait)

    @rule(values=st.sampled_from(COMMANDS), parallel=st.sampled_from([1, 3]), wait=WAITS)
    def submit(self, values: tuple[int, ...], parallel: int, wait: float) -> None:
        self.choose(values)
        self.bench.settings.sweep.parallel = parallel
        self.known = [*dict.fromkeys([*self.known, values])]
        self.did(f"sweep {values} {parallel}: {self.bench.sweep().splitlines()[-6:-5]}")
        time.sleep(wait)

    @rule(values=st.sampled_from(COMMANDS), step=st.sampled_from(sorted(STEPS)), wait=WAITS)
    def submit_and_die(self, values: tuple[int, ...], step: str, wait: float) -> None:
        self.choose(values)
        self.known = [*dict.fromkeys([*self.known, values])]
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill_after(patch, *STEPS[step])
            self.bench.sweep()
        self.did(f"sweep {values}, killed when {step}")
        time.sleep(wait)

    @rule(which=ANY, wait=WAITS)
    def retry(self, which: int, wait: float) -> None:
        self.choose(self.known[which % len(self.known)])
        if self.bench.folder.exists():
            self.did(f"retry {self.bench.values}: {self.bench.jobs('retry', check=None)}")
        time.sleep(wait)

    @rule(which=ANY, index=st.sampled_from([None, 0, 1]))
    def cancel(self, which: int, index: int | None) -> None:
        self.choose(self.known[which % len(self.known)])
        if not self.bench.folder.exists():
            return
        states = self.bench.states()
        self.did(f"cancel {self.bench.values} {index} {[s.name for s in states]}")
        self.did(self.bench.jobs("cancel", *([] if index is None else [str(index)])))
        runs = {s.entry.run.name for s in states if index in (None, s.entry.index)}
        runs -= self.strays
        until(lambda: not [p for p in self.bench.processes() if p.run in runs], 120, self.explain)
        # Not at once: what was killed a moment ago has said that it runs, and this is believed for so long.
        until(lambda: not [r for r, n in self.names().items() if r in runs and n in ACTIVE], 30, self.explain)

    @rule(
        kind=st.sampled_from(["launch.local", "launch.job", "dtrain"]),
        number=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]),
        which=ANY,
        wait=WAITS,
    )
    def kill(self, kind: str, number: signal.Signals, which: int, wait: float) -> None:
        deadline = time.monotonic() + 1
        while not (found := [p for p in self.bench.processes() if p.kind == kind]) and time.monotonic() < deadline:
            time.sleep(0.05)
        if found:
            victim = found[which % len(found)]
            self.did(f"{number.name} to {victim}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, number)
        time.sleep(wait)

    @rule(kind=st.sampled_from(sorted(FILES)), how=st.sampled_from(["empty", "half", "garbage", "future"]), which=ANY)
    def damage(self, kind: str, how: str, which: int) -> None:
        files = sorted(self.path.glob(FILES[kind]))
        if not files:
            return
        file = files[which % len(files)]
        self.did(f"{how}: {file.relative_to(self.path)}")
        if kind == "status":
            self.damaged.add(file.parent.name)
        if kind in ("owner", "submission"):
            self.strays |= {file.parent.name} if kind == "owner" else {f"run-{i}" for i in range(3)}
        if how == "future":
            os.utime(file, (time.time() + 3600,) * 2)
            return
        content = file.read_bytes()
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "garbage": b"\xff\0{["}[how])

    @rule(
        place=st.sampled_from(STRAYS),
        name=st.sampled_from([".nfs0001", "1.bak", "7"]),
        which=ANY,
        folder=st.booleans(),
    )
    def leave_a_stray(self, place: str, name: str, which: int, folder: bool) -> None:
        places = sorted(p for p in self.path.glob(place) if p.is_dir())
        stray = places[which % len(places)] / name if places else None
        if stray and not stray.exists():
            stray.mkdir() if folder else stray.write_text("{")

    @rule(value=st.integers(0, 2), broken=st.booleans())
    def let_it_fail(self, value: int, broken: bool) -> None:
        if broken and self.bench.run(value).exists():
            (self.bench.run(value) / "broken").touch()
        else:
            (self.bench.run(value) / "broken").unlink(missing_ok=True)

    @rule(wait=st.sampled_from([0.5, 1.5, 3.0]))
    def pass_time(self, wait: float) -> None:
        time.sleep(wait)

    @invariant()
    def nothing_is_wrong(self) -> None:
        for values in self.known:
            self.choose(values)
            if self.bench.folder.exists():
                self.bench.jobs("status")
        for run, name in self.names().items():
            folder = self.path / "runs" / run
            assert name != "finished" or (folder / "done").exists(), self.explain()
            wrong = (folder / "wrong").read_text() if (folder / "wrong").exists() else ""
            assert "two at once" not in wrong, f"{run}: {wrong}\n{self.explain()}"
            assert run in self.damaged or "again" not in wrong, f"{run}: {wrong}\n{self.explain()}"
        self.strays = self.strays if self.bench.processes() else set()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.bring_home()
        finally:
            for process in self.bench.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            self.patch.undo()
            shutil.rmtree(self.path)

    def bring_home(self) -> None:
        """Once nothing more happens, what was started ends, and each command, given again, finishes its points."""
        for file in self.path.glob("runs/*/broken"):
            file.unlink()
        (self.path / "runs").mkdir(exist_ok=True)
        (self.path / "runs" / "enough").touch()
        for _ in range(2):  # the second, as what ran at the first may have been in its way
            for values in self.known:
                self.submit(values, 3, 0.0)
            until(lambda: not self.bench.processes(), 240, self.explain)
            until(lambda: not set(self.names().values()) & set(ACTIVE), 30, self.explain)
            self.nothing_is_wrong()
        assert set(self.names().values()) <= {"finished"}, self.explain()


COMMON: dict[str, Any] = {
    "deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate],
}  # fmt: skip


def test_nothing_is_lost_or_run_twice_whatever_happens() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=6, stateful_step_count=8, derandomize=True, **COMMON)
    )


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_is_lost_or_run_twice_in_many_histories() -> None:
    examples = int(os.environ.get("DTRAIN_EXAMPLES", "60"))
    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=20, **COMMON))
