"""From Hydra multirun syntax to a sweep's points: composed, validated, and collapsed where they are the same run."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from dtrain.compose import compose, compose_with_choices, one_length, resolved, unnamed
from dtrain.config import CONFIGS, Config, ConfigError, parse, run_dir, signature
from dtrain.wording import one_line
from launch.check import Checker, paths

_SHOWN = 5  # wrong points named in an error


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """As OmegaConf.to_yaml, which takes twenty times longer in Python than in C."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)


@dataclass(frozen=True)
class Point:
    """One run of a sweep: what was swept, its frozen configuration, and its folder."""

    values: dict[str, Any]
    config: Config
    yaml: str
    signature: str

    @property
    def run(self) -> Path:
        """The run's folder, absolute."""
        return run_dir(self.config)


def with_pause(text: str, share: float | None) -> str:
    """A point's frozen configuration, with which it pauses after that share of its steps, or runs to the end."""
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    content["run"]["pause_at"] = share
    return yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def make_points(overrides: list[str], ranks: int, known: Path) -> tuple[list[Point], int]:
    """All points of a sweep that runs on `ranks` processes each, and how many duplicates collapsed.

    known: see `Checker`. Raises ConfigError naming each point that cannot be run; then none may be submitted.
    """
    with closing(Checker(known)) as checker:
        lines = expand(overrides)
        keys = _swept(lines)
        composer = _Composer()
        errors: dict[int, str] = {}
        points: dict[int, Point] = {}
        for number, line in enumerate(lines):
            try:
                points[number] = _point(composer, line, keys)
                points[number].config.trainer.check_world(ranks)
            except ConfigError as e:
                errors[number] = str(e)
        if not errors:
            answers = checker.errors([p.config for p in points.values()])
            errors = {number: e for number, e in zip(points, answers, strict=True) if e}
    if errors:
        raise ConfigError(_explain(errors, lines, keys))
    distinct = {p.signature: p for p in reversed(points.values())}
    return list(reversed(distinct.values())), len(lines) - len(distinct)


def _explain(errors: dict[int, str], lines: list[list[str]], keys: list[str]) -> str:
    """Names the first wrong points by what was swept."""
    said = [f"{len(errors)} of {len(lines)} points cannot be run, so nothing was submitted"]
    for number in sorted(errors)[:_SHOWN]:
        label = " ".join(o for o in lines[number] if o.partition("=")[0] in keys) or " ".join(lines[number])
        said.append(f"point {number} ({label}): {errors[number]}")
    if len(errors) > _SHOWN:
        said.append(f"… and {len(errors) - _SHOWN} more")
    return "\n".join(said)


def expand(overrides: list[str]) -> list[list[str]]:
    """The overrides of each point: Hydra's own sweep syntax, with the sweeper.params of the chosen files."""
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", overrides=overrides, run_mode=RunMode.MULTIRUN)
            # As they were written: interpolations are the points' own to resolve.
            asked: dict[str, Any] = {
                k: OmegaConf.to_container(v, resolve=False) for k, v in master.hydra.overrides.items()
            }
            swept: Any = OmegaConf.to_container(master.hydra.sweeper, resolve=False)
            params = [f"{k}={v}" for k, v in (swept["params"] or {}).items()]
            parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *asked["task"]])
            (lines,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except OverrideParseException as e:
        raise ConfigError(one_line(e)) from e
    except ValueError as e:  # Hydra's own, of lambda=null: leave the key out instead
        raise ConfigError(f"{' '.join(overrides)}: {e}") from e
    except HydraException as e:
        compose([o for o in overrides if not _parse(o).is_sweep_override()])  # says more about a wrong key
        raise ConfigError(one_line(e)) from e
    return [[*asked["hydra"], *line] for line in lines]


def _swept(lines: list[list[str]]) -> list[str]:
    """The keys whose value differs between points, in the order of the command line."""
    seen: dict[str, set[str]] = {}
    for line in lines:
        for override in line:
            key, _, value = override.partition("=")
            seen.setdefault(key, set()).add(value)
    return [key for key, values in seen.items() if len(values) > 1]


@functools.cache
def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _compose(overrides: Sequence[str]) -> DictConfig:
    """As dtrain.compose.compose, but without a signature in run.name: the point's own follows it."""
    cfg, choices = compose_with_choices(list(overrides))
    if unnamed(cfg):
        name = str(choices.get("experiment") or f"{choices['model']}-${{data.name}}")
        cfg.run.name = name.replace("/", "-")
    return cfg


class _Composer:
    """Composes points that choose the same files only once: Hydra takes 0.1 s for it, a value takes 0.1 ms."""

    def __init__(self) -> None:
        # Pickled, for a copy of it takes a tenth of deepcopy's time; and whether a value refers to another.
        self._bases: dict[tuple[str, ...], tuple[bytes, bool]] = {}
        self._groups = {p.name for p in CONFIGS.iterdir() if p.is_dir()}

    def __call__(self, line: list[str]) -> tuple[DictConfig, bool]:
        """Equal to dtrain.compose.compose(line), but for run.name, which is that of the chosen files.

        Beside it, whether a value but run.name may refer to another.
        """
        line = one_length(line)
        plain = [o for o in line if self._is_plain(_parse(o))]
        files = tuple(o for o in line if o not in plain)
        try:
            if files not in self._bases:
                base = _compose(files)
                OmegaConf.set_struct(base, True)
                self._bases[files] = pickle.dumps(base), _refers(base)
            pickled, refers = self._bases[files]
            cfg: DictConfig = pickle.loads(pickled)
            for o in map(_parse, plain):
                OmegaConf.update(cfg, o.key_or_group, o.value(), merge=True)
        except (ConfigError, OmegaConfBaseException):
            return _compose(line), True  # right after all, or an error that names the key
        return cfg, refers or any("${" in o for o in line)

    def _is_plain(self, override: Override) -> bool:
        """Whether it changes an existing value, and not the choice of files."""
        key = override.key_or_group
        return (
            override.type is OverrideType.CHANGE
            and override.package is None
            and key not in self._groups
            and "/" not in key
            and not key.startswith(("hydra.", "optim.groups."))
        )


def _refers(cfg: DictConfig) -> bool:
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    content["run"].pop("name")
    return "${" in str(content)


def _point(composer: _Composer, line: list[str], keys: list[str]) -> Point:
    cfg, refers = composer(line)
    content = resolved(cfg)
    config = parse(content)
    if config.run.dir is not None:
        raise ConfigError(f"run.dir={config.run.dir}: is one folder for all points; use run.root and run.name")
    own = signature(config)
    # Whatever folder a later command, or the job, is started in.
    changes = {key: str(path.absolute()) for key, path in paths(config).items()}
    changes["run.name"] = f"{config.run.name}-{own}"
    for key, value in changes.items():
        if refers or key in keys:
            OmegaConf.update(cfg, key, value)
        section, _, name = key.rpartition(".")
        functools.reduce(dict.__getitem__, filter(None, section.split(".")), content)[name] = value
    if refers:
        content = resolved(cfg)
    chosen = dict(o.partition("=")[::2] for o in line)
    values = {}
    for key in keys:
        value = OmegaConf.select(cfg, key.lstrip("+"), default=chosen.get(key))
        values[key] = chosen.get(key) if OmegaConf.is_config(value) else value
    return Point(values, parse(content), yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False), own)
