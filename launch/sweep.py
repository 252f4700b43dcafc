"""python launch/sweep.py -m key=value,value …: check a grid of runs, and put it on SLURM or on this machine.

python launch/sweep.py -m model=stackedwae lambda=grid                  the paper's 25 pairs
python launch/sweep.py -m seed='range(0,5)' experiment=quickstart --dry-run
python launch/sweep.py -m … launcher=gpu launcher.partition=a100        resources: configs/launcher/, launcher.*
python launch/sweep.py -m … sweep.wait=true                             stay, with a live table
python launch/sweep.py -m … sweep.code=rerun                            begin anew what other code has made
python launch/sweep.py -m … sweep.halving=3                           a third goes on at 1/9, and at 1/3 of the steps

Hydra's multirun syntax: lists, range(), choice(), glob(), and files with hydra.sweeper.params. The same command
again submits only what is missing or failed.
"""

from __future__ import annotations

import gc
import shlex
import sys
from pathlib import Path

if not __package__:  # as a script, Python would look in launch/ only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dtrain.config import ConfigError
from dtrain.files import locked
from launch import table
from launch.codes import kept, outdated, warning
from launch.halving import Halving, asked_for, part, settled, waiting
from launch.points import Point, make_points, with_pause
from launch.settings import Settings, Sweep, program, read_settings, sweeps_folder
from launch.standing import State, states
from launch.store import Entry, SweepFolder, open_sweep, sweep_id
from launch.submit import estimate, submit, to_submit, where


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    gc.set_threshold(50_000)  # composing makes objects by the thousand: looking through them took a third of the time
    try:
        settings = read_settings(_flags(argv))
        return run(settings, argv)
    except ConfigError as e:
        print(f"sweep: {e}", file=sys.stderr)
        return 2


def _flags(argv: list[str]) -> list[str]:
    known = {"-m": None, "--multirun": None, "--dry-run": "sweep.dry_run=true", "--wait": "sweep.wait=true"}
    wrong = [a for a in argv if a.startswith("-") and a not in known]
    if wrong:
        raise ConfigError(f"unknown option {wrong[0]}; allowed: {', '.join(known)}, and key=value")
    return [a for word in argv if (a := known.get(word, word)) is not None]


def run(settings: Settings, argv: list[str]) -> int:
    """Validates all points, then submits those that need it. Returns the exit code."""
    launcher, asked = settings.launcher, _asked(settings.sweep)
    place = where(settings.sweep.where)
    base = sweeps_folder(settings.sweep)
    points, collapsed = make_points(settings.overrides, launcher.ranks, base / "checked")
    name = settings.sweep.name or points[0].run.name.rpartition("-")[0]
    path = base / sweep_id(points, name)
    by_signature = {p.signature: p for p in points}
    with locked(base / "lock"):  # two commands at once must not both find a point missing
        fresh = [Entry(i, p.values, p.signature, p.run) for i, p in enumerate(points)]
        entries = SweepFolder.open(path).points if (path / "sweep.json").exists() else fresh
        if {e.signature for e in entries} != set(by_signature):
            raise ConfigError(f"{path / 'sweep.json'} is damaged: it holds other points; remove it and try again")
        found = states(entries)
        if settings.sweep.code == "rerun":
            found = outdated(found)
        halving = asked and settled(Halving.open(path), asked, path).advanced(found)
        todo = to_submit(halving.open_points(found) if halving else found)
        whole = {e.index: by_signature[e.signature] for e in entries}
        _plan(settings, path.name, place, found, todo, whole, collapsed, halving)
        if settings.sweep.dry_run:
            return 0
        sweep = open_sweep(path, points, argv)
        if halving:
            halving.write(path)
        if todo:
            texts = {s.entry.index: whole[s.entry.index].yaml for s in todo}
            yamls = {i: with_pause(text, halving.share) for i, text in texts.items()} if halving else texts
            with kept(todo):
                submission = submit(sweep, yamls, launcher, place, settings.sweep.parallel)
            what = (
                f"array{'s' * (len(submission.arrays) > 1)} {submission.job}"
                if place == "slurm"
                else f"{submission.parallel} at a time on this machine"
            )
            print(f"submitted {len(todo)} points of {sweep.id}: {what}")
        else:
            print(f"submitted 0 points of {sweep.id}: {table.counts(found)}")
    _follow(settings, sweep)
    if settings.sweep.wait:
        try:
            good = ("finished", "paused") if halving else ("finished",)
            return int(any(s.name not in good for s in table.watch(sweep, lambda: waiting(sweep))))
        except KeyboardInterrupt:
            print("the sweep goes on")
    return 0


def _asked(sweep: Sweep) -> Halving | None:
    if sweep.halving is None:
        return None
    return asked_for(sweep.halving, sweep.rungs, sweep.objective)


def _plan(
    settings: Settings, name: str, place: str, found: list[State], todo: list[State], points: dict[int, Point],
    collapsed: int, halving: Halving | None,
) -> None:  # fmt: skip
    """Prints what would be submitted, with what, and at what cost."""
    launcher = settings.launcher
    duplicates = f", {collapsed} duplicates collapsed" if collapsed else ""
    print(f"sweep {name}: {len(found)} points ({table.counts(found)}{duplicates}), {len(todo)} to submit")
    if halving:
        print(f"  {halving.plan(found)}")
    if todo:
        print(f"  each: {launcher.nodes} node(s) x {launcher.tasks} task(s), {launcher.gpus} GPU(s), on {place}")
        print("  " + " ".join(f"{k}={v}" for k, v in launcher.public().items()))
        configs = {i: p.config for i, p in points.items()}
        print(f"  estimate: {estimate(todo, configs, launcher, settings.sweep.pilot, part(halving, found))}")
    if said := warning(found):
        print(said)
    if settings.sweep.dry_run:
        table.show(found, list(found[0].entry.values))
        print("dry run: nothing was submitted")


def _follow(settings: Settings, sweep: SweepFolder) -> None:
    where_to = "" if settings.sweep.dir == "sweeps" else f" --dir {shlex.quote(settings.sweep.dir)}"
    for command in ("status", "logs", "cancel", "retry"):
        print(f"  {program('jobs')} {command} {sweep.id}{where_to}")
    print(f"  {program('collect')} {sweep.id}{where_to}")


if __name__ == "__main__":
    sys.exit(main())
