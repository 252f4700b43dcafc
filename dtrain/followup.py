"""A run that differs from an earlier one only in its length, and continues it: run.extend=true.

In the earlier run's own folder where run.name or run.dir names it; else in its own, on a copy of the earlier one's
checkpoints and metrics, so that the earlier run, which may be a sweep's point, stays what it is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dtrain import compose as configs
from dtrain.checkpoint import CheckpointError, read_seal, steps
from dtrain.config import Config, ConfigError, signature
from dtrain.files import append_line, held, read_json, read_lines, replace_text, write_json
from dtrain.length import check, lengths
from dtrain.models.base import Algorithm
from dtrain.target import completed

# Written in C where it can be: a folder may hold hundreds of runs.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Earlier:
    """A run that differs only in its length. step: of its newest checkpoint. obstacle: why it cannot be continued."""

    folder: Path
    length: str
    step: int
    obstacle: str | None

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.obstacle:
            return f"it cannot be continued, since {self.obstacle}"
        return f"run.extend=true continues it from step {self.step}"

    def take_over(self, folder: Path) -> None:
        """Makes a run folder go on from it, and notes that in the metrics. Killed on the way, it begins anew."""
        if folder == self.folder:
            status = read_json(folder / "status.json")
            write_json(folder / "status.json", {**status, "state": "stopped"})
        else:
            with held(
                self.folder / "running.lock", f"process {os.getpid()}, which continues it", lambda _: 0.0
            ) as who:
                if who is not None:
                    raise ConfigError(f"{self.folder} is being trained by {who}: wait for it")
                self._copy(folder)
        what = f"extended: the steps up to {self.step} are those of {self.folder}, which had {self.length}"
        append_line(folder / "metrics.jsonl", {"kind": "extended", "step": self.step, "message": what})

    def _copy(self, folder: Path) -> None:
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
            if (self.folder / name).is_dir():
                unfinished = shutil.ignore_patterns("*.incomplete", "*.replaced")
                shutil.copytree(self.folder / name, folder / name, ignore=unfinished, copy_function=_link)
        lines = self.folder / "metrics.jsonl"
        replace_text(folder / "metrics.jsonl", lines.read_text() if lines.exists() else "")


def _link(source: str, target: str) -> None:
    """The same file under another name, since checkpoints are never changed; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def extended(
    folder: Path, config: Config, algorithm: Algorithm, images: int, content: Mapping[str, str], main: bool
) -> Earlier | None:
    """The run that run.extend continues in the folder; None where the folder's own goes on, or a new one begins.

    images: of the training split. content: the digests of the data by split. main: whether to say that there is one,
    where run.extend is not set. ConfigError, saying why, where it is set and there is none, or none that could go on.
    """
    found = _earlier(folder, config, algorithm, images, content)
    if not config.run.extend:
        if found and main:
            print(f"{found.folder} differs only in its length, {found.length}: {found.advice}", flush=True)
        return None
    if found is None:
        if (folder / "config.yaml").exists():
            return None
        raise ConfigError(
            f"run.extend=true: no run beside {folder} differs from it in nothing but its length; name the run with "
            "run.name, or leave run.extend out to begin anew"
        )
    if found.obstacle:
        raise ConfigError(f"run.extend=true: {found.folder}, {found.length}, cannot be continued: {found.obstacle}")
    if found.folder == folder and (folder / "owner.json").exists():
        raise ConfigError(
            f"run.extend=true: {folder} is a sweep's point, whose result must stay; leave run.name and run.dir out, "
            "and the longer run has a folder of its own"
        )
    if main:
        print(f"it continues {found.folder}, {found.length}, from step {found.step}", flush=True)
    return found


def _earlier(
    folder: Path, config: Config, algorithm: Algorithm, images: int, content: Mapping[str, str]
) -> Earlier | None:
    """The run that could be continued; of several the one of most steps, before those that cannot be."""
    taken = (folder / "config.yaml").exists()
    kin = [_read(other, config) for other in ([folder] if taken else _siblings(folder, config))]
    found = [
        Earlier(other, _length(theirs), *_standing(other, theirs, config, algorithm, images, content))
        for other, theirs in (k for k in kin if k)
    ]
    return max(found, key=lambda e: (e.obstacle is None, e.step), default=None)


def _length(config: Config) -> str:
    key, value = config.trainer.length
    return f"trainer.{key}={value}"


def _siblings(folder: Path, config: Config) -> list[Path]:
    """The run folders beside it with its name, but for the hash."""
    base = folder.name.removesuffix(f"-{signature(config)}")
    pattern = re.compile(re.escape(base) + "(-[0-9a-f]{10})?")
    names = os.listdir(folder.parent) if folder.parent.is_dir() else []
    return [folder.parent / name for name in sorted(names) if name != folder.name and pattern.fullmatch(name)]


def _read(folder: Path, config: Config) -> tuple[Path, Config] | None:
    """A run folder with its configuration, if that differs from the given one in its length, and in nothing else."""
    try:
        raw = yaml.load((folder / "config.yaml").read_bytes(), LOADER)
        model = raw["model"]
        # Most runs differ here, which is soon seen; and no other class than the own one is ever imported.
        if model["_target_"] != config.model["_target_"] or raw["seed"] != config.seed:
            return None
        if any(value != config.model[key] for key, value in model.items() if key in config.model):
            return None
        theirs = completed(configs.typed(configs.load(folder / "config.yaml")))
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, ConfigError):
        return None  # no run folder, or a damaged one
    own = completed(config)
    same = signature(own, length=False) == signature(theirs, length=False)
    return (folder, theirs) if same and signature(own) != signature(theirs) else None


def _standing(
    folder: Path, theirs: Config, config: Config, algorithm: Algorithm, images: int, content: Mapping[str, str]
) -> tuple[int, str | None]:
    """The step of a run's newest checkpoint, and why it cannot be continued to the configured length, if so."""
    seal = _newest(folder)
    if seal is None:
        return 0, "it has no checkpoint that is whole"
    data = read_json(folder / "environment.json").get("data", content)
    return seal["step"], (
        (None if data == content else f"it was trained on other data than data.path={config.data.path} now holds")
        or _of_patience(seal)
        or _of_stages(seal, theirs, config, algorithm, images)
        or _of_schedule(seal, theirs, config, algorithm, images, _trained(folder, seal["begun"]))
    )


def _newest(folder: Path) -> dict[str, Any] | None:
    for path in reversed(steps(folder / "checkpoints")):
        try:
            return read_seal(path)
        except CheckpointError:
            continue
    return None


def _of_patience(seal: Mapping[str, Any]) -> str | None:
    judged = seal["judged"]
    if judged["patience"] is None or judged["worse"] < judged["patience"]:
        return None
    return (
        f"it ended at step {seal['step']} by trainer.patience, not by its length; a larger trainer.patience makes "
        "another run"
    )


def _of_stages(
    seal: Mapping[str, Any], theirs: Config, config: Config, algorithm: Algorithm, images: int
) -> str | None:
    """Stages that have ended keep their length, and the one under way cannot go back."""
    check(theirs.trainer, [stage.name for stage in algorithm.stages()])
    old, new = (lengths(c.trainer, algorithm.stages(), images) for c in (theirs, config))
    for stage in algorithm.stages():
        if stage.name == seal["stage"]:
            break
        if old[stage.name] != new[stage.name] and not stage.trained:
            return f"its stage {stage.name} has ended after {old[stage.name]} steps, which later stages build on"
    done = seal["step"] - seal["begun"]
    if new[seal["stage"]] < done:
        return f"it has had {done} steps already, more than {new[seal['stage']]}"
    return None


def _of_schedule(
    seal: Mapping[str, Any],
    theirs: Config,
    config: Config,
    algorithm: Algorithm,
    images: int,
    trained: Sequence[str],
) -> str | None:
    """A cosine that ends with the training has had other learning rates from the first step on."""
    old, new = (lengths(c.trainer, algorithm.stages(), images)[seal["stage"]] for c in (theirs, config))
    if old == new or seal["step"] == seal["begun"]:
        return None
    for group in algorithm.groups:
        settings = config.optim.of(group)
        if settings.schedule == "cosine" and settings.decay_images is None and group in (trained or algorithm.groups):
            return (
                f"the cosine schedule of {group} ends with the training, so that a longer one has other learning "
                "rates from the start; optim.*.decay_images sets its end, and init.from starts a new run from weights"
            )
    return None


def _trained(folder: Path, begun: int) -> list[str]:
    """The groups that were trained since a step, as the metrics have it; [] if they do not say."""
    lines = [m for m in read_lines(folder / "metrics.jsonl") if m.get("kind") == "train" and m.get("step", 0) > begun]
    return sorted({key.rpartition("/")[2] for line in lines for key in line if key.startswith("grad_norm/")})
