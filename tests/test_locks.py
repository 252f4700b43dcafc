"""Locks on file systems that have none: one holder at a time, and none that outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain import claims
from dtrain.files import LOST, held, locked

ERRORS = ("ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL", "EIO")
# A process on such a file system; its arguments: the error, the lock, seconds between beats, seconds until stale.
PROGRAM = """
import errno, fcntl, sys, time
from pathlib import Path
from dtrain import claims
from dtrain.files import held, locked
def flock(f, operation):
    raise OSError(getattr(errno, sys.argv[1]), "flock")
fcntl.flock = flock
path, claims.BEAT, claims.STALE = Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
"""
HOLD = """
with held(path, "holder", lambda _: 0.0) as other:
    print(other, flush=True)
    sys.stdin.read()
"""
COUNT = """
for _ in range(20):
    with locked(path):
        n = int((path.parent / "n").read_text())
        time.sleep(0.002)
        (path.parent / "n").write_text(str(n + 1))
"""


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of what flock answers, in this process too."""

    def flock(f: object, operation: int) -> None:
        raise OSError(getattr(errno, request.param), "flock")

    monkeypatch.setattr(fcntl, "flock", flock)
    return str(request.param)


def start(script: str, error: str, lock: Path, beat: float = 0.2, stale: float = 30) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + script, error, str(lock), str(beat), str(stale)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def holder(error: str, lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with start(HOLD, error, lock) as process:
        assert process.stdout is not None and process.stdout.readline() == "None\n"
        yield process
        process.kill()


def test_two_holders_exclude_each_other(lock: Path, holder: subprocess.Popen[str]) -> None:
    with held(lock, "second", lambda _: 0.3) as other:
        assert other == "holder"
    with locked(lock, wait=False) as mine:
        assert not mine
    holder.communicate("")
    with locked(lock, wait=False) as mine:
        assert mine
    assert [p.name for p in lock.parent.iterdir()] == ["lock"]


def test_a_killed_holder_is_taken_over_at_once(lock: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock.with_name("lock.claim").exists()
    with held(lock, "second", lambda _: 0.0) as other:
        assert other is None
    assert not lock.with_name("lock.claim").exists()


@pytest.mark.parametrize("error", ["ENOSYS"], indirect=True)
@pytest.mark.parametrize("age", [0.0, 20.0, 40.0, -20.0, -3600.0])
def test_another_hosts_claim_counts_while_it_is_refreshed(error: str, lock: Path, age: float) -> None:
    """However far its clock is off: times are the file server's. One from the future is not for ever."""
    claim = lock.with_name("lock.claim")
    claim.write_text("elsewhere\n1\nabc\n")
    os.utime(claim, (time.time() - age,) * 2)
    with locked(lock, wait=False) as mine:
        assert mine == (abs(age) > claims.STALE)


@pytest.mark.parametrize("error", ["ENOSYS"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"x" * 5000, b"\n\n\n"])
def test_a_damaged_claim_is_not_for_ever(error: str, lock: Path, content: bytes) -> None:
    claim = lock.with_name("lock.claim")
    claim.write_bytes(content)
    with locked(lock, wait=False) as mine:
        assert not mine
    os.utime(claim, (0, 0))
    with locked(lock, wait=False) as mine:
        assert mine


@pytest.mark.parametrize("error", ["ENOSYS"], indirect=True)
def test_many_processes_take_turns(error: str, lock: Path) -> None:
    (lock.parent / "n").write_text("0")
    processes = [start(COUNT, error, lock) for _ in range(4)]
    assert [p.wait(120) for p in processes] == [0] * 4
    assert (lock.parent / "n").read_text() == "80"


@pytest.mark.parametrize("error", ["ENOSYS"], indirect=True)
def test_a_dead_holders_claim_goes_to_one_of_many(error: str, lock: Path) -> None:
    lock.with_name("lock.claim").write_text(f"{claims._here()}\n999999999\nabc\n")
    processes = [start(HOLD, error, lock) for _ in range(4)]
    said = [p.stdout.readline() for p in processes if p.stdout]
    assert said.count("None\n") == 1
    for process in processes:
        process.communicate("")


@pytest.mark.parametrize("error", ["ENOSYS"], indirect=True)
def test_a_holder_that_was_held_still_ends_where_another_has_taken_over(
    error: str, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE", 0.5)
    with start(HOLD, error, lock, stale=0.5) as process:
        assert process.stdout is not None and process.stdout.readline() == "None\n"
        process.send_signal(signal.SIGSTOP)
        with locked(lock) as mine:
            assert mine
            process.send_signal(signal.SIGCONT)
            assert process.wait(120) == LOST
    assert not lock.with_name("lock.claim").exists()
