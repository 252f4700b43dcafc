"""Files that are written whole or not at all, JSON lines, locks, digests, and exit codes; without torch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dtrain.claims import claimed

STOPPED = 75  # EX_TEMPFAIL: stopped on request, the same command continues
LOST = 76  # EX_PROTOCOL: another rank is gone; the same command continues


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a small JSON file in one step: a reader sees the old one or the new one."""
    replace_text(path, json.dumps(content) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replaces a small file in one step."""
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with work.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())  # or a power cut may leave an empty file under the name
        os.replace(work, path)
    except OSError:
        work.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file; {} if there is none, or a damaged one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Appends one JSON line, on a line of its own where a full disk cut the one before it short."""
    with path.open("ab+") as f:
        if f.seek(0, os.SEEK_END):
            f.seek(-1, os.SEEK_END)
            whole = f.read() == b"\n"
        else:
            whole = True
        f.write((b"" if whole else b"\n") + json.dumps(content).encode() + b"\n")


def read_lines(path: Path, holding: bytes = b"") -> list[dict[str, Any]]:
    """The objects of a JSON-lines file but for lines cut short, damaged or being written; [] if there is none.

    holding: only of lines in which this occurs, which saves reading the others.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return []
    if holding:
        content = b"".join(content[b : content.find(b"\n", b) + 1] for b in begins(content, holding))
    return parse_lines(content)


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines but for lines cut short, damaged or being written."""
    lines = []
    for line in content.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def begins(content: bytes, text: bytes) -> Iterator[int]:
    """Where the lines begin in which a text occurs."""
    at = content.find(text)
    while at >= 0:
        yield content.rfind(b"\n", 0, at) + 1
        end = content.find(b"\n", at)
        at = content.find(text, end) if end >= 0 else -1


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, and half-written ones: they will be run again."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
    replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file `path`; yields whether it was had. It is free again once its holder has died."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as f, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            had = True
        except BlockingIOError:
            had = False
        except OSError:  # a file system without locks
            had = stack.enter_context(claimed(path, wait, LOST))
        yield had


@contextlib.contextmanager
def held(path: Path, name: str, patience: Callable[[str], float]) -> Iterator[str | None]:
    """Holds the lock file `path` as `name`; yields None, or who else holds it after patience(holder) seconds."""
    begin = time.monotonic()
    while True:
        with locked(path, wait=False) as mine:
            if mine:
                path.write_text(name)
                yield None
                return
        holder = path.read_text(errors="replace")
        if time.monotonic() - begin > patience(holder):
            yield holder
            return
        time.sleep(0.2)
