"""One run: its folder, its checks, and the training in it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from dtrain import compose as configs
from dtrain import precision
from dtrain.build import build_algorithm, build_loaders, build_site, facts, open_data
from dtrain.checkpoint import steps
from dtrain.config import Config, ConfigError, run_dir, signature
from dtrain.data.build import Loader
from dtrain.data.shards import Split
from dtrain.evaluate.evaluation import Evaluation
from dtrain.evaluate.evaluator import Evaluator
from dtrain.evaluate.preflight import check as check_evaluation
from dtrain.evaluate.preflight import check_model
from dtrain.faults import Interrupted, PeerWatch, StopSignal, explain
from dtrain.files import LOST, STOPPED, append_line, held, read_json, replace_text, write_json
from dtrain.followup import Earlier, extended
from dtrain.init import check_unchanged, recorded, starts
from dtrain.models.base import Algorithm
from dtrain.report.differences import flat
from dtrain.source import extended_codes
from dtrain.target import completed
from dtrain.trainer import Trainer
from dtrain.world import PeerFailed, RanksMissing, World, environment, leave, start

LEAVING = 20.0  # seconds that another process in the folder gets to end: it may be saving
# What a CPU must have one of, by the names of torch.cpu.get_capabilities(): x86, then Arm.
INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
Loaders = tuple[Loader, Loader, Loader]  # of the training, validation and test split
T = TypeVar("T", bound=Trainer)
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "submitit", "dtrain")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A configuration that has passed the checks, what they built, and its run's folder.

    previous: the run that it continues, where it has another folder or was shorter.
    """

    config: Config
    yaml: str
    splits: tuple[Split, Split, Split]
    algorithm: Algorithm
    folder: Path
    previous: Earlier | None

    @property
    def content(self) -> dict[str, str]:
        """The digests of the data by split."""
        return {split.path.name: split.content for split in self.splits}


def run(config: Config, yaml: str) -> int:
    """Trains the configured run in its folder and returns the exit code. All is checked before the folder exists."""
    rank, size, _ = environment()
    config.trainer.check_world(size)
    ready = prepare(config, yaml)
    if ready is None:
        return 0
    world = start(config.trainer.device, config.trainer.timeout, config.trainer.deterministic)
    precision.use(config.trainer.precision)
    if world.main and emulated(config.trainer.precision, world.device):
        print(
            f"dtrain: this CPU emulates {config.trainer.precision}, which takes many times longer than "
            "trainer.precision=fp32",
            file=sys.stderr,
        )
    try:
        with _joined(ready.folder, world), training(ready, world, StopSignal(world), Trainer) as trainer:
            code = trainer.fit()
    except Interrupted:
        if world.main:
            print("stopped before the first step; the same command begins anew", flush=True)
        return STOPPED
    except (RanksMissing, PeerFailed) as e:
        print(f"dtrain: rank {rank}: {e}", file=sys.stderr)
        return LOST if isinstance(e, RanksMissing) else 1
    if rank == 0:
        report(ready)
    return code


@contextlib.contextmanager
def _joined(folder: Path, world: World) -> Iterator[None]:
    """The time in the process group: an error of one rank reaches the others, with its reason, instead of a hang."""
    watch = PeerWatch(world, partial(_note_failure, folder) if world.main else lambda _: None)
    try:
        yield
    except BaseException as e:
        error = explain(e, world, step=0)
        raise error from (e.__cause__ if error is e else e)
    finally:
        watch.close()
        if not world.broken:  # leaving a broken group can hang as long as the broken collective did
            leave()


def _note_failure(folder: Path, message: str) -> None:
    """Where the main thread can no longer say it."""
    with contextlib.suppress(OSError):  # before there is a folder, or where nothing can be written
        write_json(folder / "status.json", {**read_json(folder / "status.json"), "state": "failed", "error": message})


def prepare(config: Config, yaml: str) -> Prepared | None:
    """Checks all that can be checked of a run before its folder exists; None, which is said, of a finished one."""
    main = environment()[0] == 0
    splits = open_data(config)
    check_evaluation(config.evaluate, splits[0])
    algorithm = build_algorithm(config, facts(splits[0]))
    check_model(config.evaluate, algorithm, splits[0])
    folder, previous = run_dir(config), None
    content = {split.path.name: split.content for split in splits}
    if config.run.extend or not (folder / "config.yaml").exists():
        previous = extended(folder, config, algorithm, len(splits[0]), content, main=main)
    if previous is None:
        _check_folder(folder, config, content)
        check_unchanged(config, algorithm, folder)
        if _finished(folder):
            if main:
                print(f"{folder} is finished; to train it anew, remove it or set run.dir or run.name")
            return None
    return Prepared(config, yaml, splits, algorithm, folder, previous)


@contextlib.contextmanager
def training(
    ready: Prepared, world: World, stop: StopSignal, kind: type[T], loaders: Loaders | None = None
) -> Iterator[T]:
    """The run's trainer, rehearsed, in its folder, which is kept from other processes.

    loaders: of the three splits, where other runs read them too.
    """
    config, algorithm, folder, previous = ready.config, ready.algorithm, ready.folder, ready.previous
    begun = cache(partial(starts, config, algorithm, world))
    fresh = previous is None and not steps(folder / "checkpoints")
    about = {
        "code": extended_codes(None if fresh else previous.folder if previous else folder),
        "data": ready.content,
        "facts": asdict(facts(ready.splits[0])),
        "init": [s.record() for s in begun()] if fresh else None,
    }
    train, valid, test = loaders or build_loaders(config, algorithm, ready.splits, world)
    site = build_site(config, algorithm, train, world, folder, stop)
    evaluation = Evaluation(algorithm, site, valid, config.evaluate, config.run.root / "statistics")
    evaluator = Evaluator(evaluation, replace(evaluation, heldout=test))
    trainer = kind(config, algorithm, site, stop, evaluator, begun)
    trainer.rehearse()
    with _held(folder, world):
        _open_folder(folder, ready.yaml, about, world, previous)
        yield trainer


def report(ready: Prepared) -> None:
    """The page of a finished run, if it wants one. Whatever stops it, the run is finished all the same."""
    folder, config = ready.folder, ready.config
    if not (config.run.report and _finished(folder)):
        return
    module = str(config.model["_target_"]).rpartition(".")[0]  # it has trained this run: it is trusted
    try:
        from dtrain.report.run import run_page

        run_page(folder, folder / "report.html", [module])
        print(f"report: {folder / 'report.html'}", flush=True)
    except Exception as e:
        again = f"python -m dtrain.report {shlex.quote(str(folder))} makes it"
        print(f"dtrain: no report.html ({type(e).__name__}: {e}); {again}", file=sys.stderr)


def emulated(precision: str, device: torch.device) -> bool:
    """Whether the device is a CPU without instructions for the precision."""
    needed = INSTRUCTIONS.get(precision)
    if device.type != "cpu" or needed is None:
        return False
    return not any(torch.cpu.get_capabilities().get(name) for name in needed)


def _finished(folder: Path) -> bool:
    return read_json(folder / "status.json").get("state") == "finished"


def _check_folder(folder: Path, config: Config, content: dict[str, str]) -> None:
    """ConfigError if the folder holds another run, or one on other data."""
    if not (folder / "config.yaml").exists():
        return
    own, other = (completed(c) for c in (config, configs.read(configs.load(folder / "config.yaml"))))
    if signature(other) == signature(own):
        file = folder / "environment.json"
        before = read_json(file).get("data", content)
        if before != content:
            raise ConfigError(
                f"{folder} was trained on other data than data.path={config.data.path} now holds (sha256 {before}, "
                f"now {content}); choose run.name or run.dir"
            )
        return
    if signature(other, length=False) == signature(own, length=False):
        key, length = other.trainer.length
        raise ConfigError(
            f"{folder} holds this run with trainer.{key}={length}: run.extend=true continues it; or choose run.name"
        )
    ours, theirs = (flat(c.model_dump(mode="json")) for c in (own, other))
    differing = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in ours.items() if theirs.get(k) != v]
    raise ConfigError(
        f"{folder} holds another run; choose run.name or run.dir. They differ in\n  " + "\n  ".join(differing)
    )


@contextlib.contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """Keeps other processes from training in the folder; the system lets go when this one dies.

    ConfigError on every rank if another still does after LEAVING seconds.
    """
    with contextlib.ExitStack() as stack:
        holder = error = None
        if world.main:
            name = f"process {os.getpid()} on {platform.node()}"
            try:
                holder = stack.enter_context(held(folder / "running.lock", name, lambda _: LEAVING))
            except OSError as e:
                error = str(e)
        holder, error = world.share((holder, error))
        if error is not None:
            raise ConfigError(f"{folder}: the run's folder cannot be written ({error}); choose run.root")
        if holder is not None:
            raise ConfigError(f"{folder} is being trained by {holder}: wait for it, or choose run.name or run.dir")
        yield


def _open_folder(folder: Path, yaml: str, about: dict[str, Any], world: World, previous: Earlier | None) -> None:
    """config.yaml, environment.json, and a line in the metrics for this start. ConfigError on every rank.

    previous: the run that this one continues.
    """
    error = None
    if world.main:
        try:
            for work in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):  # a kill's
                work.unlink()
            first = previous is None and not (folder / "config.yaml").exists()
            if previous:
                previous.take_over(folder)
            replace_text(folder / "config.yaml", yaml)
            noted = about["init"] or recorded(previous.folder if previous else folder)
            environment = {**_environment(world), **about, "init": noted}
            replace_text(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
            begun = {"kind": "start", "time": time.time(), "restart": not first, "world_size": world.size}
            append_line(folder / "metrics.jsonl", {**begun, "code": about["code"][-1]})
        except OSError as e:
            error = f"{folder}: the run's files cannot be written ({e}); make room, or choose run.root"
        except ConfigError as e:
            error = str(e)
    error = world.share(error)
    if error is not None:
        raise ConfigError(error)


def _environment(world: World) -> dict[str, Any]:
    cuda = world.device.type == "cuda"
    return {
        "git": _revision(),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or "cpu",
        "world_size": world.size,
    }


@cache
def _revision() -> str | None:
    """Of the checkout that the code lies in; None where it lies in a virtual environment of another project."""
    if not shutil.which("git"):
        return None

    def git(*command: str) -> str:
        asked = ["git", "-C", str(Path(__file__).resolve().parent), *command]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    return git("describe", "--always", "--dirty") if top and Path(top, "dtrain", "trainer.py").exists() else None
