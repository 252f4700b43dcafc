"""From Hydra multirun syntax to a sweep's points: composed, validated, and collapsed where they are the same run."""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from dtrain.compose import compose, compose_with_choices, one_length, resolved, unnamed
from dtrain.config import CONFIGS, Config, ConfigError, RunConfig, checked, parse, run_dir, signature
from dtrain.wording import one_line
from launch.check import Checker, paths

_SHOWN = 5  # wrong points named in an error
_NUMBER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)", re.ASCII)


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
    if found := _NUMBER.fullmatch(override):  # which takes Hydra's parser 1 ms
        key, value = found.groups()
        number = float(value) if set(value) & set(".eE") else int(value)
        return Override(OverrideType.CHANGE, key, ValueType.ELEMENT, number, input_line=override)
    return OverridesParser.create().parse_override(override)


def _compose(overrides: Sequence[str]) -> DictConfig:
    """As dtrain.compose.compose, but without a signature in run.name: the point's own follows it."""
    cfg, choices = compose_with_choices(list(overrides))
    if unnamed(cfg):
        name = str(choices.get("experiment") or f"{choices['model']}-${{data.name}}")
        cfg.run.name = name.replace("/", "-")
    return cfg


class _Base:
    """What points have in common that choose the same files: composed once, which takes Hydra 0.1 s.

    values: where none but run.name may refer to another. cfg: pickled, for a copy of it takes a tenth of deepcopy's
    time.
    """

    def __init__(self, files: Sequence[str]) -> None:
        cfg = _compose(files)
        OmegaConf.set_struct(cfg, True)
        self.cfg = pickle.dumps(cfg)
        self.values: dict[str, Any] | None = None
        with suppress(ConfigError):  # a value that each point must give
            if _refers(cfg):
                return
            values: dict[str, Any] = resolved(cfg)
            for key, path in paths(parse(values)).items():
                if not key.startswith("init."):  # its parts are in the signature
                    values = _replaced(values, key, str(path.absolute()))
            self.values = values

    def updated(self, changes: Sequence[Override]) -> dict[str, Any] | None:
        """The values with the changes, where that takes no more than putting one in another's place."""
        found = self.values
        for o in changes:
            value = o.value()
            # run.name is made of data.name.
            if found is None or not _simple(value) or o.key_or_group == "data.name":
                return None
            try:
                found = _replaced(found, o.key_or_group, value)
            except (KeyError, TypeError):
                return None
        return found


def _simple(value: Any) -> bool:
    """Whether OmegaConf keeps a value as it is."""
    return isinstance(value, int | float | None) or (isinstance(value, str) and "${" not in value and value != "???")


def _replaced(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The tree with another value of a key that it has. Shares with it what has not changed. KeyError, TypeError."""
    name, _, rest = key.partition(".")
    before = tree[name]
    if not rest and isinstance(before, dict | list):
        raise TypeError(key)
    if rest and not isinstance(before, dict):
        raise TypeError(key)
    return tree | {name: _replaced(before, rest, value) if rest else value}


class _Composer:
    """Composes points, those that choose the same files from what they have in common."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._groups = {p.name for p in CONFIGS.iterdir() if p.is_dir()}

    def __call__(self, line: list[str]) -> tuple[dict[str, Any], DictConfig | None]:
        """The values of dtrain.compose.compose(line), but for run.name, which is that of the chosen files.

        Paths may be absolute. Beside them the configuration itself where a value but run.name may refer to another.
        """
        line = one_length(line)
        plain = [o for o in line if self._is_plain(_parse(o))]
        files = tuple(o for o in line if o not in plain)
        try:
            if files not in self._bases:
                self._bases[files] = _Base(files)
            base, changes = self._bases[files], [_parse(o) for o in plain]
            if (values := base.updated(changes)) is not None:
                return values, None
            cfg: DictConfig = pickle.loads(base.cfg)
            for o in changes:
                OmegaConf.update(cfg, o.key_or_group, o.value(), merge=True)
        except (ConfigError, OmegaConfBaseException):
            cfg = _compose(line)  # right after all, or an error that names the key
            return resolved(cfg), cfg
        refers = base.values is None or any("${" in o for o in line)
        return resolved(cfg), cfg if refers else None

    def yaml(self, content: dict[str, Any]) -> str:
        """The frozen file. A section that points share is written once, for it takes 2 ms for each."""
        found = ""
        for name, section in content.items():
            key = name, repr(section)
            if key not in self._texts:
                self._texts[key] = yaml.dump({name: section}, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
            found += self._texts[key]
        return found

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
    content, cfg = composer(line)
    before, config = content, parse(content)
    if config.run.dir is not None:
        raise ConfigError(f"run.dir={config.run.dir}: is one folder for all points; use run.root and run.name")
    own = signature(config)
    # Whatever folder a later command, or the job, is started in.
    changes = {key: str(path.absolute()) for key, path in paths(config).items()}
    changes["run.name"] = f"{config.run.name}-{own}"
    if cfg is not None:
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        content = resolved(cfg)
    for key, value in changes.items():
        if _select(content, key) != value:
            content = _replaced(content, key, value)
    if all(content[name] is before[name] for name in content if name != "run"):
        config = config.model_copy(update={"run": checked(RunConfig, content["run"], "run")})
    else:
        config = parse(content)
    chosen = dict(o.partition("=")[::2] for o in line)
    values = {}
    for key in keys:
        value = _select(content, key.lstrip("+"), chosen.get(key))
        values[key] = chosen.get(key) if isinstance(value, dict | list) else value
    return Point(values, config, composer.yaml(content), own)


def _select(tree: Any, key: str, default: Any = None) -> Any:
    """The value of a key, whose parts may be places in lists; the default where there is none."""
    for part in key.split("."):
        try:
            tree = tree[int(part) if isinstance(tree, list) else part]
        except (KeyError, TypeError, ValueError, IndexError):
            return default
    return tree
