"""Claim files: locks for file systems that have none (Lustre without flock, some NFS and FUSE).

Whoever creates <lock>.claim holds the lock. It says who that is, and its time, which the holder refreshes, that they
still live. All times are the file server's own, so that no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT = 3.0  # seconds between two signs of life
STALE = 30.0  # seconds without one after which the holder counts as dead


@contextlib.contextmanager
def claimed(lock: Path, wait: bool, lost: int) -> Iterator[bool]:
    """Holds the claim beside the lock file, which exists; yields whether it was had.

    lost: the exit code of a holder that was held still for so long that another took over.
    """
    claim = lock.with_name(f"{lock.name}.claim")
    own = f"{_here()}\n{os.getpid()}\n{os.urandom(8).hex()}\n"
    while not (had := _create(claim, own)) and (_bury_dead(claim, lock) or wait):
        time.sleep(0.1)
    if not had:
        yield False
        return
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(claim, own, ended, lost), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        ended.set()
        beat.join()
        if _read(claim) == own:
            claim.unlink(missing_ok=True)


def _here() -> str:
    """This host, and the part of it in which process ids mean the same."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _create(claim: Path, own: str) -> bool:
    try:
        fd = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(fd, "w") as f:
            f.write(own)
    except OSError:  # a full disk
        claim.unlink(missing_ok=True)
        raise
    return True


def _read(claim: Path) -> str:
    """What the claim says; empty where there is none, or none yet."""
    try:
        return claim.read_text(errors="replace")
    except OSError:
        return ""


def _bury_dead(claim: Path, lock: Path) -> bool:
    """Removes the claim if its holder is dead; whether it, or some other claim, has just gone."""
    said = _read(claim)
    try:
        lock.touch()
        age = lock.stat().st_mtime - claim.stat().st_mtime
    except FileNotFoundError:
        return True
    host, pid, *_ = [*said.splitlines(), "", ""]
    gone = host == _here() and pid.isdigit() and not Path(f"/proc/{pid}").exists()
    if not gone and abs(age) < STALE:
        return False
    grave = claim.with_name(f"{claim.name}.{os.urandom(8).hex()}")
    with contextlib.suppress(OSError):
        os.rename(claim, grave)  # of those who try at once, one moves this file
        if _read(grave) != said:  # and it had gone before: this is the claim of whoever was quicker
            os.link(grave, claim)
    grave.unlink(missing_ok=True)
    return True


def _beat(claim: Path, own: str, ended: threading.Event, lost: int) -> None:
    """Refreshes the claim, and ends the process, here and now, if the claim has become another's."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if not _create(claim, own):  # as it is but where somebody has removed it
                os.utime(claim)
        if _read(claim) not in (own, ""):
            print(f"dtrain: {claim} was taken over while this process was held still: it ends", file=sys.stderr)
            os._exit(lost)
