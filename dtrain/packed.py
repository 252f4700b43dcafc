"""python -m dtrain.packed CONFIG …: runs of one architecture, from frozen configurations, trained together.

All of them take each step at once, in one process. Each has its own folder, in which it logs, saves and evaluates as
if it were alone: `python -m dtrain --config` continues it alone, and the same command continues the pack.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from omegaconf import OmegaConf

from dtrain import compose as configs
from dtrain import precision
from dtrain.alike import check_algorithm, check_alike, stacked
from dtrain.allocator import keep_freed_memory
from dtrain.build import build_algorithm, build_loaders, facts
from dtrain.checkpoint import CheckpointError, step_of, steps, verify
from dtrain.config import Config, ConfigError
from dtrain.data.batch import Batch
from dtrain.distributed import distribute
from dtrain.faults import Interrupted, StopSignal
from dtrain.files import STOPPED, read_json
from dtrain.members import PackedUpdater
from dtrain.models.base import Algorithm, Site, Stage
from dtrain.run import Loaders, Prepared, prepare, report, training
from dtrain.stream import Stream
from dtrain.trainer import Trainer
from dtrain.world import World, environment, start

Courses = dict[int, Generator[Stage, None, None]]  # of the members that have not ended, by their places


class Counted(Stream):
    """The stream of a member: counts what the pack reads for all of them."""

    def __init__(self, stage: Stage, site: Site, images: int) -> None:
        self.images, self._stage, self._size, self._source = images, stage, site.batch_size, None

    def read(self) -> None:
        """The pack has read one more batch."""
        self.images += self._size


class Member(Trainer):
    """A run of a pack, whose steps the pack takes. others: all members, this one included."""

    stream: Counted
    others: Sequence[Member] = ()

    def _open(self) -> None:
        self.stream = Counted(self.stage, self.site, self.images)
        self.algorithm.train()
        self.meter.restart(self.step)

    def _save(self, value: float | None = None) -> None:
        """Once what the others have saved of earlier steps is on disk: so there is a step that all of them have."""
        for other in self.others:
            if other.saved is not None and other.saved < self.step:
                other.checkpoints.wait()
        super()._save(value)


class Pack:
    """Trains members to their ends. base: an algorithm of their architecture, see PackedUpdater.

    A member that fails, ends by its patience or is paused leaves the pack; the numbers of the others stay the same.
    """

    def __init__(self, base: Algorithm, members: Sequence[Member]) -> None:
        self.base, self.members = base, members
        for i, member in enumerate(members):
            member.others, member.log.prefix = members, f"[{i}] "
        self.codes: dict[int, int] = {}

    def fit(self) -> int:
        """0 once all have ended well, STOPPED when asked to stop, 1 if one has failed."""
        _begin_together(self.members)
        courses = {i: member.course() for i, member in enumerate(self.members)}
        self._go_on(courses)
        for member in self.members:
            member.checkpoints.until = math.inf
        if courses:
            self._train(courses)
        found = set(self.codes.values())
        return STOPPED if STOPPED in found else max(found)

    def _train(self, courses: Courses) -> None:
        places = list(courses)  # in the stacks
        members = [self.members[i] for i in places]
        distribute(self.base, members[0].world, strategy="ddp", shard_size=None, sync_batchnorm=True)
        (stage,) = self.base.stages()
        try:
            updater = PackedUpdater(self.base, [m.algorithm for m in members], [m.updater for m in members])
            batches = self._batches(members, courses)
            while courses:
                own = [self.members[i].updater for i in courses]
                updater.begin(own[0].images, own[0].total_images, any(u.measure for u in own))
                stage.step(batches, updater)
                before = set(courses)
                self._go_on(courses)
                for i in before - courses.keys():
                    updater.release(places.index(i))
        except BaseException as e:
            for course in courses.values():
                with suppress(StopIteration, type(e)):
                    course.throw(e)  # says what becomes of its run
            raise

    def _go_on(self, courses: Courses) -> None:
        """Every member does what is due between two steps; those that have ended are dropped from the courses."""
        for i, course in list(courses.items()):
            begin = time.perf_counter()
            try:
                next(course)
            except StopIteration:
                self.codes[i] = self.members[i].code
                del courses[i]
            except Exception as e:  # its own folder says so too
                print(f"dtrain.packed: {self.members[i].site.folder}: {type(e).__name__}: {e}", file=sys.stderr)
                self.codes[i] = 1
                del courses[i]
            for other in courses.keys() - {i}:
                self.members[other].meter.skip(time.perf_counter() - begin)

    def _batches(self, members: Sequence[Member], courses: Courses) -> Iterator[Batch]:
        """The batches of all members, who share them where their seeds are the same."""
        seeds = [m.site.seed for m in members]
        streams = {m.site.seed: m.site.train.batches(m.images) for m in reversed(members)}
        while True:
            begin = time.perf_counter()
            found = {seed: next(stream) for seed, stream in streams.items()}
            waited = time.perf_counter() - begin
            for i in courses:
                self.members[i].stream.read()
                self.members[i].meter.waited += waited
            yield found[seeds[0]] if len(found) == 1 else stacked([found[seed] for seed in seeds])


def _begin_together(members: Sequence[Member]) -> None:
    """Lets no member go on from a later step than the newest one that all of them have saved."""
    saved = [{step_of(path): path for path in steps(m.site.folder / "checkpoints")} for m in members]
    common = set.intersection(*(set(found) for found in saved))
    step = next((s for s in sorted(common, reverse=True) if all(_verifies(found[s]) for found in saved)), -1)
    for member, found in zip(members, saved, strict=True):
        member.checkpoints.until = step
        if found and max(found) > step:
            where = f"goes on from step {step}, the newest that" if step >= 0 else "begins anew: there is none that"
            member.log.line(
                f"step {max(found)} is saved in {member.site.folder}, but the pack {where} all members have"
            )


def _verifies(path: Path) -> bool:
    with suppress(CheckpointError):
        return bool(verify(path))
    return False


def run(configurations: Sequence[Config], yamls: Sequence[str]) -> int:
    """Trains the configured runs together, each in its folder. The exit code, see Pack.fit; ConfigError."""
    if environment()[1] > 1:
        raise ConfigError("a pack is trained by one process; on several, train its runs alone")
    check_alike(configurations)
    if any(c.run.extend for c in configurations):
        raise ConfigError("run.extend=true: a pack begins and continues runs; extend each alone")
    found = [prepare(c, yaml) for c, yaml in zip(configurations, yamls, strict=True)]
    ready = _not_left_behind([r for r in found if r is not None])
    if not ready:
        return 0
    first = ready[0].config
    check_algorithm(ready[0].algorithm, first)
    world = start(first.trainer.device, first.trainer.timeout, first.trainer.deterministic)
    precision.use(first.trainer.precision)
    stop = StopSignal(world)
    try:
        with ExitStack() as stack:
            members = _members(ready, world, stop, stack)
            code = Pack(build_algorithm(first, facts(ready[0].splits[0])), members).fit()
    except Interrupted:
        print("stopped before the first step; the same command begins anew", flush=True)
        return STOPPED
    for r in ready:
        report(r)
    return code


def _members(ready: Sequence[Prepared], world: World, stop: StopSignal, stack: ExitStack) -> list[Member]:
    """Their trainers, in their folders. Those of one seed read one loader."""
    loaders: dict[int, Loaders] = {}
    members = []
    for r in ready:
        if r.config.seed not in loaders:
            loaders[r.config.seed] = build_loaders(r.config, r.algorithm, r.splits, world)
        members.append(stack.enter_context(training(r, world, stop, Member, loaders[r.config.seed])))
    return members


def _not_left_behind(ready: list[Prepared]) -> list[Prepared]:
    """Without those that have failed while others went further: those would have to go back to where these ended."""
    states = [read_json(r.folder / "status.json") for r in ready]
    going = max((s.get("step", 0) for s in states if s.get("state") != "failed"), default=0)
    kept = [r for r, s in zip(ready, states, strict=True) if s.get("state") != "failed" or s.get("step", 0) >= going]
    for r in ready:
        if r not in kept:
            print(f"{r.folder} has failed earlier and stays out; python -m dtrain --config goes on with it alone")
    return kept


def main(argv: Sequence[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    keep_freed_memory()
    try:
        cfgs = [configs.load(Path(a)) for a in argv]
        return run([configs.read(cfg) for cfg in cfgs], [OmegaConf.to_yaml(cfg, resolve=True) for cfg in cfgs])
    except ConfigError as e:
        print(f"dtrain.packed: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
