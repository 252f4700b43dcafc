"""Points of other code than the present: named, begun anew, and kept beside the new ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.config import ConfigError
from dtrain.files import held
from dtrain.source import code_hash, codes
from launch.standing import ACTIVE, State
from launch.store import Entry
from launch.table import counts

MARK = ".code-"  # between a run's name and its code's hash, where it is kept
OUTDATED = "outdated"
NAMED = 5  # points of a code that a warning names one by one
LEAVING = 20.0  # seconds that a process in a run's folder gets to end: it may be writing the report


def mixed(found: Iterable[State]) -> str:
    """A warning that says which code these points are of, if not all of the same; else ""."""
    by_code: dict[str, list[int]] = {}
    for s in found:
        if s.code:
            by_code.setdefault(s.code, []).append(s.entry.index)
    if len(by_code) < 2:
        return ""
    said = "; ".join(f"{code}: {_named(indices)}" for code, indices in by_code.items())
    return f"warning: the points are of different code ({said}); sweep.code=rerun begins those of other code anew"


def _named(indices: list[int]) -> str:
    return f"{len(indices)} points" if len(indices) > NAMED else f"point {', '.join(map(str, indices))}"


def _is_other(state: State, present: str) -> bool:
    return state.code not in ("", present)


def warning(found: Iterable[State]) -> str:
    """What to know before points are submitted: how many are of other code than the present; "" if none."""
    begun = [s for s in found if s.code]
    present = code_hash() if begun else ""
    other = [s for s in begun if _is_other(s, present)]
    if not other:
        return ""
    return (
        f"warning: {counts(other)} by other code than the present, {present}; "
        "sweep.code=rerun begins anew what neither waits nor runs"
    )


def outdated(found: Iterable[State]) -> list[State]:
    """The states, where other code's that neither wait nor run have become OUTDATED, with nothing done yet."""
    present = code_hash()
    return [
        replace(s, name=OUTDATED, status={}, note=f"{s.name} by code {s.code}, which is kept")
        if s.name not in ACTIVE and _is_other(s, present)
        else s
        for s in found
    ]


@contextlib.contextmanager
def kept(found: Iterable[State]) -> Iterator[None]:
    """Moves the OUTDATED points' runs to <run>.code-<hash>, and back if what follows raises ConfigError."""
    moved: list[tuple[Path, Path]] = []
    try:
        for run in [s.entry.run for s in found if s.name == OUTDATED]:
            moved.append((run, _keep(run)))
        yield
    except ConfigError:
        for run, place in moved:
            with contextlib.suppress(OSError):
                place.rename(run)
        raise


def _keep(run: Path) -> Path:
    """Where the run is from now on. ConfigError if a process is still in it."""
    name = f"{run.name}{MARK}{codes(run)[-1]}"
    names = itertools.chain([name], (f"{name}.{n}" for n in itertools.count(2)))
    place = next(path for n in names if not (path := run.with_name(n)).exists())
    try:
        with contextlib.ExitStack() as stack:
            for lock in ("lock", "running.lock"):
                who = stack.enter_context(held(run / lock, "the command that begins it anew", lambda _: LEAVING))
                if who is not None:
                    raise ConfigError(f"{run} is in use by {who}: wait for it")
            return run.rename(place)
    except OSError as e:
        raise ConfigError(f"{run}: cannot be kept as {place.name} ({e})") from e


def kept_runs(points: Sequence[Entry]) -> list[Entry]:
    """The runs of these points that were kept, each as an entry of its own."""
    found: dict[Path, list[Path]] = {}
    for folder in {p.run.parent for p in points}:
        for path in sorted(folder.glob(f"*{MARK}*")):
            found.setdefault(path.with_name(path.name.rpartition(MARK)[0]), []).append(path)
    return [replace(p, run=path) for p in points for path in found.get(p.run, [])]
