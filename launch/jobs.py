"""python launch/jobs.py status|logs|retry|cancel SWEEP [INDEX …]: follow a sweep that launch/sweep.py submitted.

status   where every point stands
logs     the end of the points' logs (--lines 40), of all restarts
retry    submit again what failed, was cancelled or is missing; launcher.key=value changes the resources
cancel   stop points after they have saved
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # as a script, Python would look in launch/ only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dtrain.config import ConfigError
from dtrain.files import locked
from launch import local, slurm, table
from launch.settings import launcher_from, overridden, program
from launch.standing import ACTIVE, Owner, State, states
from launch.store import SweepFolder
from launch.submit import submit, to_submit, where


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["status", "logs", "retry", "cancel"])
    parser.add_argument("sweep", help="a sweep's id")
    parser.add_argument(
        "rest", nargs="*", metavar="INDEX", help="only these points; for retry also launcher.key=value"
    )
    parser.add_argument("--dir", type=Path, default=Path("sweeps"), help="folder of the sweeps (default: sweeps)")
    parser.add_argument("--lines", type=int, default=40, help="lines of each log (default: 40)")
    args = parser.parse_args(argv)
    try:
        sweep = SweepFolder.open((args.dir / Path(args.sweep).name).absolute())
        overrides = [a for a in args.rest if "=" in a]
        if overrides and args.command != "retry":
            raise ConfigError(f"{overrides[0]}: only retry takes launcher.key=value")
        chosen = [s for s in states(sweep.points) if s.entry.index in _indices(args.rest, sweep)]
        if args.command == "status":
            table.show(chosen, sweep.keys)
            print(table.counts(chosen))
        elif args.command == "logs":
            _logs(chosen, args.lines)
        elif args.command == "retry":
            _retry(sweep, {s.entry.index for s in chosen}, overrides)
        else:
            _cancel(chosen)
    except ConfigError as e:
        print(f"jobs: {e}", file=sys.stderr)
        return 2
    return 0


def _indices(rest: list[str], sweep: SweepFolder) -> set[int]:
    """The chosen points; all if none is named. Raises ConfigError."""
    words = [a for a in rest if "=" not in a]
    wrong = [w for w in words if not w.isdigit() or int(w) >= len(sweep.points)]
    if wrong:
        raise ConfigError(f"{wrong[0]}: is not a point of {sweep.id}, which has 0 to {len(sweep.points) - 1}")
    return {int(w) for w in words} or {e.index for e in sweep.points}


def _logs(found: list[State], lines: int) -> None:
    for s in found:
        values = " ".join(f"{k}={table.number(v)}" for k, v in s.entry.values.items())
        print(f"== {s.entry.index}: {values} ({s.name}) {s.owner.log if s.owner else ''}")
        if s.owner and s.owner.log.is_file():
            text = s.owner.log.read_text(errors="replace")
            print("\n".join(text.splitlines()[-lines:]))


def _retry(sweep: SweepFolder, indices: set[int], overrides: list[str]) -> None:
    with locked(sweep.path.parent / "lock"):
        todo = [s for s in to_submit(states(sweep.points)) if s.entry.index in indices]
        if not todo:
            print(f"submitted 0 points of {sweep.id}: none failed or is missing")
            return
        files = {s.entry.index: sweep.config(s.entry.index) for s in todo}
        yamls = {i: file.read_text(errors="replace") for i, file in files.items() if file}
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
        elif submission.job and not slurm.cancel(*(f"{job}_{task}" for job, task in map(submission.task, indices))):
            print(f"scancel failed: of job {submission.job}, what runs goes on; what waits will not start")
    print(f"cancelled {len(owned)} points; running ones save first")
    strays = [str(s.entry.run) for s in found if s.name in ACTIVE and not s.owner]
    if strays:
        print(f"not started by a sweep, stop them where they run: {' '.join(strays)}")


if __name__ == "__main__":
    sys.exit(main())
