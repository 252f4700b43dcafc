"""What a sweep asks for: SLURM resources (`launcher.*`, configs/launcher/) and how to go about it (`sweep.*`)."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from dtrain.compose import no_environment
from dtrain.config import CONFIGS, ConfigError, name_error
from dtrain.wording import one_line

# Not ours to set: where submitit keeps pickles (there are none), and the stock launcher's class.
_FOREIGN = ("_target_", "submitit_folder", "stderr_to_stdout")

# Of each number. SLURM takes 0 GB as a node's whole memory.
_LEAST = {
    "nodes": 1, "tasks_per_node": 1, "timeout_min": 1, "array_parallelism": 1, "cpus_per_task": 1, "cpus_per_gpu": 1,
    "gpus_per_node": 0, "gpus_per_task": 0, "mem_gb": 0, "signal_delay_s": 0, "max_num_timeout": 0,
    "points_per_gpu": 1,
}  # fmt: skip


@dataclass
class Launcher(SlurmQueueConf):
    """hydra-submitit-launcher's fields with defaults that keep work, and three fields that it lacks."""

    name: str = "dtrain"
    submitit_folder: str = ""
    timeout_min: int = 1440
    # Tasks are ranks. Not given: one for each GPU, else one.
    tasks_per_node: int | None = None
    # Restarts after preemption, time limits and killed ranks, before a point counts as failed.
    max_num_timeout: int = 100
    # Start after other jobs, e.g. afterok:1234.
    dependency: str | None = None
    # Whole nodes.
    exclusive: bool | None = None
    # Points that run on a GPU at the same time, each a process of its own. They share the GPU, cores and memory.
    points_per_gpu: int = 1

    @property
    def tasks(self) -> int:
        """Ranks on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks of a run."""
        return self.nodes * self.tasks

    @property
    def gpus(self) -> int:
        """GPUs of a run."""
        return self.nodes * ((self.gpus_per_node or 0) or self.tasks * (self.gpus_per_task or 0))

    def threads(self) -> dict[str, str]:
        """What a rank's environment says of its threads."""
        cores = max(1, (self.cpus_per_task or 1) // self.points_per_gpu)
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(cores)}

    def check_shared(self) -> None:
        """ConfigError unless points that are to share a GPU take one GPU each."""
        if self.points_per_gpu > 1 and (self.ranks, self.gpus) != (1, 1):
            raise ConfigError(
                f"launcher.points_per_gpu={self.points_per_gpu}: only runs of one process on one GPU can share "
                f"it, these take {self.ranks} and {self.gpus}: set launcher.gpus_per_node=1, one node and one task"
            )

    def public(self) -> dict[str, Any]:
        """The fields that are set, for the plan and for sweep.json."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FOREIGN}
        return {k: v for k, v in values.items() if v not in (None, {}, [])}


@dataclass
class Sweep:
    """How to go about a sweep."""

    # First part of the sweep's id; not given: the model's or experiment's name.
    name: str | None = None
    # Folder of the sweeps' folders.
    dir: str = "sweeps"
    # Print the plan and submit nothing.
    dry_run: bool = False
    # Show a live table until every point has ended.
    wait: bool = False
    # slurm | local | auto: SLURM where there is sbatch and a cluster answers, else this machine.
    where: str = "auto"
    # Runs at a time on this machine. Not given: as many as fit its GPUs, else its cores.
    parallel: int | None = None
    # Training speed of one run in images/s, for the estimated GPU-hours. Not given: that of earlier runs.
    pilot: float | None = None
    # Points of one architecture that one process trains together, at most so many; auto: all, where runs have a GPU.
    pack: int | str = 1
    # warn | rerun: what to do about points of other code: say how many, or begin them anew and keep what there is.
    code: str = "warn"
    # Successive halving: of so many settings one goes on from each rung. Not given: every point runs to its end.
    halving: int | None = None
    # Pauses of a halving: by 3 with 2 rungs, at 1/9 and 1/3 of the steps.
    rungs: int = 2
    # Metric on valid that a halving judges by. Not given: objective, else the results' first that has a direction.
    objective: str | None = None


@dataclass
class Settings:
    """Both, and the overrides left for the points."""

    launcher: Launcher = field(default_factory=Launcher)
    sweep: Sweep = field(default_factory=Sweep)
    overrides: list[str] = field(default_factory=list)


def read_settings(argv: list[str]) -> Settings:
    """Splits the command line into launcher.*, sweep.* and the points' own overrides. Raises ConfigError."""
    try:
        parsed = OverridesParser.create().parse_overrides(argv)
    except HydraException as e:
        raise ConfigError(one_line(e)) from e
    ours = [o for o in parsed if o.key_or_group.split(".")[0] in ("launcher", "sweep")]
    if whole := [o.input_line for o in ours if o.key_or_group == "sweep"]:
        raise ConfigError(f"{whole[0]}: sweep is a group of keys, sweep.key=value: {_names(Sweep)}")
    swept = [o.input_line for o in ours if o.is_sweep_override()]
    if swept:
        raise ConfigError(f"{swept[0]}: resources are the same for all points and cannot be swept")
    choice = next((str(o.value()) for o in ours if o.key_or_group == "launcher"), "default")
    launcher = _merge(Launcher, _file(choice), [o for o in ours if o.key_or_group.startswith("launcher.")])
    sweep = _merge(Sweep, {}, [o for o in ours if o.key_or_group.startswith("sweep.")])
    _check_launcher(launcher)
    _check_sweep(sweep)
    return Settings(launcher, sweep, [str(o.input_line) for o in parsed if o not in ours])


def program(name: str) -> str:
    """How a command of the launcher is typed: as this one was, by the name that a wheel installs or in a checkout."""
    return f"dtrain-{name}" if Path(sys.argv[0]).name.startswith("dtrain-") else f"python launch/{name}.py"


def launcher_from(stored: dict[str, Any]) -> Launcher:
    """The inverse of Launcher.public."""
    return _merge(Launcher, stored, [])


def overridden(launcher: Launcher, overrides: list[str]) -> Launcher:
    """Other resources for a retry. Raises ConfigError."""
    settings = read_settings(overrides)
    if settings.overrides:
        raise ConfigError(
            f"{settings.overrides[0]}: a retry keeps its configuration; only launcher.key=value may change"
        )
    parsed = OverridesParser.create().parse_overrides(overrides)
    changed = _merge(Launcher, launcher.public(), [o for o in parsed if o.key_or_group.startswith("launcher.")])
    _check_launcher(changed)
    changed.check_shared()
    return changed


def _file(name: str) -> Any:
    file = CONFIGS / "launcher" / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
        raise ConfigError(f"launcher={name}: there is no {file.name} in configs/launcher; it has: {names}")
    return OmegaConf.load(file)


def _merge(kind: type[Any], base: Any, overrides: list[Override]) -> Any:
    node = OmegaConf.structured(kind)
    line, key = "configs/launcher", ""
    try:
        node.merge_with(base)
        for o in overrides:
            line = str(o.input_line)
            key = o.key_or_group.partition(".")[2]
            # Only additional_parameters is open: its keys are sbatch's.
            OmegaConf.update(node, key, o.value(), merge=True, force_add=key.startswith("additional_parameters."))
        with no_environment():
            return OmegaConf.to_object(node)
    except OmegaConfBaseException as e:
        unknown = isinstance(e, ConfigKeyError | ConfigAttributeError)
        said = f"unknown key; allowed: {_names(kind)}" if unknown else str(e).splitlines()[0]
        raise ConfigError(f"{line}: {said.replace(f'field {key!r} is not Optional', 'it may not be null')}") from e


def _names(kind: type[Any]) -> str:
    return ", ".join(sorted(f.name for f in fields(kind) if f.name not in _FOREIGN))


def _check_launcher(launcher: Launcher) -> None:
    for key, least in _LEAST.items():
        value = getattr(launcher, key)
        if value is not None and value < least:
            raise ConfigError(f"launcher.{key}={value}: must be at least {least}")
    if launcher.signal_delay_s * 2 > launcher.timeout_min * 60:
        raise ConfigError(
            f"launcher.signal_delay_s={launcher.signal_delay_s}: a job of launcher.timeout_min="
            f"{launcher.timeout_min} would be told to stop before it did any work; at most half the time limit"
        )
    for key, value in [*launcher.public().items(), *(launcher.additional_parameters or {}).items()]:
        # Each becomes a line of the batch script, which a line break would let it leave.
        if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
            raise ConfigError(f"launcher.{key}={value!r}: line breaks and control characters are not allowed")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(key)):
            raise ConfigError(f"launcher.additional_parameters.{key}: is not a name of an sbatch option")


def _check_sweep(sweep: Sweep) -> None:
    if sweep.where not in ("auto", "slurm", "local"):
        raise ConfigError(f"sweep.where={sweep.where}: allowed: auto, slurm, local")
    if sweep.code not in ("warn", "rerun"):
        raise ConfigError(f"sweep.code={sweep.code}: allowed: warn, rerun")
    if isinstance(sweep.pack, str):
        if sweep.pack != "auto":
            raise ConfigError(f"sweep.pack={sweep.pack}: a number of at least 1, or auto")
    elif sweep.pack < 1 or (sweep.pack > 1 and sweep.halving is not None):
        raise ConfigError(f"sweep.pack={sweep.pack}: must be at least 1, and 1 or auto with sweep.halving")
    if sweep.parallel is not None and sweep.parallel < 1:
        raise ConfigError(f"sweep.parallel={sweep.parallel}: must be at least 1")
    if sweep.pilot is not None and not 0 < sweep.pilot < math.inf:
        raise ConfigError(f"sweep.pilot={sweep.pilot}: is a speed in images/s, and must be more than 0")
    if sweep.name is not None and (error := name_error(sweep.name)):
        raise ConfigError(f"sweep.name={sweep.name!r}: {error}")
    if not sweep.dir:
        raise ConfigError("sweep.dir is empty; a shell variable that is not set? The present folder is .")


def sweeps_folder(sweep: Sweep) -> Path:
    """The folder of all sweeps, absolute."""
    return Path(sweep.dir).absolute()
