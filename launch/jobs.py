"""python launch/jobs.py status|why|logs|retry|cancel SWEEP [INDEX …]: follow a sweep that launch/sweep.py submitted.

python launch/jobs.py list: all sweeps, and how many of their points are in which state

status   where every point stands; hours are by the clock, of all its starts together
why      the error and the last lines (--lines 40) of the log of each point that has failed or is lost
logs     the end of the points' logs (--lines 40), of all restarts
retry    submit again what failed, was cancelled or is missing; launcher.key=value changes the resources; a point
         that a halving has paused runs to its end where its INDEX is named
cancel   stop points after they have saved; without an INDEX the judging of a halving too
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

if not __package__:  # as a script, Python would look in launch/ only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dtrain.config import ConfigError
from dtrain.files import locked
from launch import local, packs, slurm, table
from launch.codes import mixed, warning
from launch.halving import Halving, waiting
from launch.points import with_pause
from launch.settings import launcher_from, overridden, program
from launch.standing import ACTIVE, Owner, State, states
from launch.store import SweepFolder
from launch.submit import submit, to_submit, where


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "status", "why", "logs", "retry", "cancel"])
    parser.add_argument("sweep", nargs="?", help="a sweep's id; list takes none")
    parser.add_argument(
        "rest", nargs="*", metavar="INDEX", help="only these points; for retry also launcher.key=value"
    )
    parser.add_argument("--dir", type=Path, default=Path("sweeps"), help="folder of the sweeps (default: sweeps)")
    parser.add_argument("--lines", type=_count, default=40, help="lines of each log (default: 40)")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            _list(args.dir.absolute())
            return 0
        if args.sweep is None:
            raise ConfigError(f"{args.command}: of which sweep? {program('jobs')} list names them")
        sweep = SweepFolder.open((args.dir / Path(args.sweep).name).absolute())
        overrides = [a for a in args.rest if "=" in a]
        if overrides and args.command != "retry":
            raise ConfigError(f"{overrides[0]}: only retry takes launcher.key=value")
        indices, found = _indices(args.rest, sweep), states(sweep.points)
        chosen = [s for s in found if s.entry.index in indices]
        if args.command == "status":
            _status(sweep, chosen, found)
        elif args.command == "why":
            _why(chosen if args.rest else [s for s in chosen if s.name in ("failed", "lost")], args.lines)
        elif args.command == "logs":
            _logs(chosen, args.lines)
        elif args.command == "retry":
            named = len(args.rest) > len(overrides)
            _retry(sweep, {s.entry.index for s in chosen}, named, overrides)
        else:
            if not args.rest and (halving := Halving.open(sweep.path)):
                _halt(halving, sweep)
            _cancel(chosen)
        sys.stdout.flush()
    except ConfigError as e:
        print(f"jobs: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # jobs.py status … | head: whoever read along has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 1")
    return int(text)


def _indices(rest: list[str], sweep: SweepFolder) -> set[int]:
    """The chosen points; all if none is named. Raises ConfigError."""
    words = [a for a in rest if "=" not in a]
    wrong = [w for w in words if not w.isdecimal() or int(w) >= len(sweep.points)]
    if wrong:
        raise ConfigError(f"{wrong[0]}: is not a point of {sweep.id}, which has 0 to {len(sweep.points) - 1}")
    return {int(w) for w in words} or {e.index for e in sweep.points}


def _status(sweep: SweepFolder, chosen: list[State], found: list[State]) -> None:
    table.show(chosen, sweep.keys)
    print(table.counts(chosen))
    if halving := Halving.open(sweep.path):
        print(halving.standing(found, waiting(sweep)))
    if said := mixed(chosen):
        print(said)


def _list(folder: Path) -> None:
    """Every sweep with the counts of its points' states. One that is damaged says so."""
    sweeps, damaged = [], []
    for file in sorted(folder.glob("*/sweep.json")):
        try:
            sweeps.append(SweepFolder.open(file.parent))
        except ConfigError:
            damaged.append(file.parent.name)
    found = iter(states(entry for sweep in sweeps for entry in sweep.points))  # SLURM is asked once
    for sweep in sweeps:
        print(f"{sweep.id}: {len(sweep.points)} points, {table.counts(list(islice(found, len(sweep.points))))}")
    for name in damaged:
        print(f"{name}: sweep.json is damaged")
    if not sweeps and not damaged:
        print(f"no sweep in {folder}")


def _why(found: list[State], lines: int) -> None:
    for s in found:
        _print_log(s, f"{s.name}: {s.note}" if s.note else s.name, lines)
    if not found:
        print("no point has failed")


def _logs(found: list[State], lines: int) -> None:
    for s in found:
        _print_log(s, s.name, lines)


def _print_log(s: State, said: str, lines: int) -> None:
    values = " ".join(f"{k}={table.number(v)}" for k, v in s.entry.values.items())
    print(f"== {s.entry.index}: {values} ({said}) {s.owner.log if s.owner else ''}")
    if s.owner and (tail := s.owner.tail(lines)):
        print("\n".join(tail))


def _retry(sweep: SweepFolder, indices: set[int], named: bool, overrides: list[str]) -> None:
    with locked(sweep.path.parent / "lock"):
        todo = [s for s in to_submit(states(sweep.points)) if s.entry.index in indices]
        if not named:
            todo = [s for s in todo if s.name != "paused"]
        if not todo:
            print(f"submitted 0 points of {sweep.id}: none failed or is missing")
            return
        if said := warning(todo):
            print(said)
        files = {s.entry.index: sweep.config(s.entry.index) for s in todo}
        yamls = {i: file.read_text(errors="replace") for i, file in files.items() if file}
        yamls |= {i: with_pause(yamls[i], None) for s in todo if s.name == "paused" and (i := s.entry.index) in yamls}
        gone = ", ".join(str(i) for i in files if i not in yamls)
        again = f"the {program('sweep')} command of this sweep submits what is missing"
        if not yamls or not sweep.submissions():
            raise ConfigError(f"{sweep.path}/submissions: there is none that can be submitted again; {again}")
        if gone:
            print(f"point {gone}: its configuration is gone; {again}")
        last = sweep.submissions()[-1]
        launcher = overridden(launcher_from(last.launcher), overrides)
        place = where(last.where)
        submission = submit(sweep, yamls, launcher, place, last.parallel if place == last.where == "local" else None)
    print(f"submitted {len(yamls)} points of {sweep.id}: {place} {submission.job}")


def _halt(halving: Halving, sweep: SweepFolder) -> None:
    """Nothing more is judged, until the sweep's command comes again."""
    with locked(sweep.path.parent / "lock"):
        replace(halving, halted=True).write(sweep.path)
    if halving.judge:
        slurm.cancel(halving.judge)


def _cancel(found: list[State]) -> None:
    owned = [(s.name, s.owner) for s in found if s.name in (*ACTIVE, "lost") and s.owner]
    by_job: dict[Path, list[Owner]] = {}
    for name, owner in owned:
        owner.submission.cancelled(owner.index).touch()  # what has not started yet, or is restarted, looks at it
        if name in ACTIVE:
            by_job.setdefault(owner.submission.path, []).append(owner)
    for group in by_job.values():
        submission, indices = group[0].submission, [o.index for o in group]
        if submission.where == "local":
            local.cancel(submission, indices)
        if submission.where == "slurm" and submission.job and not packs.cancel_tasks(submission, indices):
            print(f"scancel failed: of job {submission.job}, what runs goes on; what waits will not start")
    print(f"cancelled {len(owned)} points; running ones save first")
    strays = [str(s.entry.run) for s in found if s.name in ACTIVE and not s.owner]
    if strays:
        print(f"not started by a sweep, stop them where they run: {' '.join(strays)}")


if __name__ == "__main__":
    sys.exit(main())
