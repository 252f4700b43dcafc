"""python launch/sweep.py -m key=value,value …: check a grid of runs, and put it on SLURM or on this machine.

python launch/sweep.py -m model=stackedwae lambda=grid                  the paper's 25 pairs
python launch/sweep.py -m seed='range(0,5)' experiment=quickstart --dry-run
python launch/sweep.py -m … launcher=gpu launcher.partition=a100        resources: configs/launcher/, launcher.*
python launch/sweep.py -m … sweep.pack=25                               points of one architecture in one process
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
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # as a script, Python would look in launch/ only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dtrain.config import ConfigError
from dtrain.files import locked
from launch import table
from launch.codes import OUTDATED, kept, outdated, warning
from launch.halving import Halving, asked_for, part, settled, waiting
from launch.packs import grouped
from launch.points import Point, make_points, with_pause
from launch.settings import Settings, program, read_settings, sweeps_folder
from launch.standing import State, states
from launch.store import Entry, SweepFolder, open_sweep, sweep_id
from launch.submit import estimate, resources, spread, submit, to_submit, where


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


@dataclass(frozen=True)
class Plan:
    """What a command is about: a sweep's folder, its points by index and their states, and those to submit.

    packs: of those, what is trained together.
    """

    path: Path
    place: str
    points: dict[int, Point]
    found: list[State]
    todo: list[State]
    halving: Halving | None
    packs: list[list[int]]


def run(settings: Settings, argv: list[str]) -> int:
    """Validates all points, then submits those that need it. Returns the exit code."""
    asked = None
    if settings.sweep.halving is not None:
        asked = asked_for(settings.sweep.halving, settings.sweep.rungs, settings.sweep.objective)
    place = where(settings.sweep.where)
    base = sweeps_folder(settings.sweep)
    points, collapsed = make_points(settings.overrides, settings.launcher.ranks, base / "checked")
    launcher = resources(settings.launcher, place, {p.config.trainer.device for p in points})
    settings = replace(settings, launcher=launcher)
    name = settings.sweep.name or points[0].run.name.rpartition("-")[0]
    with locked(base / "lock"):  # two commands at once must not both find a point missing
        plan = _plan(settings, base / sweep_id(points, name), place, points, asked)
        _show(settings, plan, collapsed)
        if settings.sweep.dry_run:
            return 0
        sweep = open_sweep(plan.path, points, argv)
        if plan.halving:
            plan.halving.write(sweep.path)
        print(_submitted(settings, sweep, plan))
    _follow(settings, sweep)
    return _wait(sweep, plan) if settings.sweep.wait else 0


def _plan(settings: Settings, path: Path, place: str, points: list[Point], asked: Halving | None) -> Plan:
    """Reads where every point stands, and judges what can be judged. Raises ConfigError."""
    by_signature = {p.signature: p for p in points}
    fresh = [Entry(i, p.values, p.signature, p.run) for i, p in enumerate(points)]
    entries = SweepFolder.open(path).points if (path / "sweep.json").exists() else fresh
    if {e.signature for e in entries} != set(by_signature):
        raise ConfigError(f"{path / 'sweep.json'} is damaged: it holds other points; remove it and try again")
    found = states(entries)
    if settings.sweep.code == "rerun":
        found = outdated(found)
    halving = asked
    if asked and not any(s.name == OUTDATED for s in found):  # else what was judged is of other code
        halving = settled(Halving.open(path), asked, path).advanced(found)
    todo = to_submit(halving.open_points(found) if halving else found)
    whole = {e.index: by_signature[e.signature] for e in entries}
    alike = {} if asked else {s.entry.index: whole[s.entry.index].config for s in todo}
    return Plan(path, place, whole, found, todo, halving, grouped(alike, settings.sweep.pack, settings.launcher))


def _show(settings: Settings, plan: Plan, collapsed: int) -> None:
    """Prints what would be submitted, with what, and at what cost."""
    launcher, found, todo = settings.launcher, plan.found, plan.todo
    duplicates = f", {collapsed} duplicates collapsed" if collapsed else ""
    print(f"sweep {plan.path.name}: {len(found)} points ({table.counts(found)}{duplicates}), {len(todo)} to submit")
    if plan.halving:
        print(f"  {plan.halving.plan(found)}")
    if todo:
        print(f"  each: {launcher.nodes} node(s) x {launcher.tasks} task(s), {launcher.gpus} GPU(s), on {plan.place}"
              + spread(launcher, plan.place, settings.sweep.parallel))  # fmt: skip
        print("  " + " ".join(f"{k}={v}" for k, v in launcher.public().items()))
        configs = {i: p.config for i, p in plan.points.items()}
        print(f"  estimate: {estimate(todo, configs, launcher, settings.sweep.pilot, part(plan.halving, found))}")
    if plan.packs:
        print(f"  in {len(plan.packs)} packs of up to {max(map(len, plan.packs))} points, each one process")
    if said := warning(found):
        print(said)
    if settings.sweep.dry_run:
        table.show(found, list(found[0].entry.values))
        print("dry run: nothing was submitted")


def _submitted(settings: Settings, sweep: SweepFolder, plan: Plan) -> str:
    """Submits what is to be submitted; a line that says so. Raises ConfigError."""
    if not plan.todo:
        return f"submitted 0 points of {sweep.id}: {table.counts(plan.found)}"
    yamls = {s.entry.index: plan.points[s.entry.index].yaml for s in plan.todo}
    if plan.halving:
        yamls = {i: with_pause(text, plan.halving.share) for i, text in yamls.items()}
    with kept(plan.todo):
        submission = submit(sweep, yamls, settings.launcher, plan.place, settings.sweep.parallel, plan.packs)
    what = f"{submission.parallel} at a time on this machine"
    if plan.place == "slurm":
        what = f"array{'s' * (len(submission.arrays) > 1)} {submission.job}"
    return f"submitted {len(plan.todo)} points of {sweep.id}: {what}"


def _wait(sweep: SweepFolder, plan: Plan) -> int:
    """Shows the live table to the end. The exit code: 1 if a point has not come to where it should."""
    good = ("finished", "paused") if plan.halving else ("finished",)
    try:
        return int(any(s.name not in good for s in table.watch(sweep, lambda: waiting(sweep))))
    except KeyboardInterrupt:
        print("the sweep goes on")
        return 0


def _follow(settings: Settings, sweep: SweepFolder) -> None:
    where_to = "" if settings.sweep.dir == "sweeps" else f" --dir {shlex.quote(settings.sweep.dir)}"
    for command in ("status", "logs", "cancel", "retry"):
        print(f"  {program('jobs')} {command} {sweep.id}{where_to}")
    print(f"  {program('collect')} {sweep.id}{where_to}")


if __name__ == "__main__":
    sys.exit(main())
