"""Hydra's part: from overrides, or a frozen file, to the configuration. Nothing else in dtrain loads Hydra."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from dtrain.config import CONFIGS, Config, ConfigError, parse, signature
from dtrain.data.own import REFERENCES
from dtrain.target import model_arguments
from dtrain.wording import one_line

for reference, resolve in REFERENCES.items():
    OmegaConf.register_new_resolver(reference, resolve, replace=True)


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that the overrides describe, with run.name filled in. Raises ConfigError."""
    cfg, choices = compose_with_choices(overrides)
    if unnamed(cfg):
        cfg.run.name = _name(cfg, choices)
    return cfg


def unnamed(cfg: DictConfig) -> bool:
    """Whether run.name is left to its default."""
    run: Any = OmegaConf.to_container(cfg, resolve=False)["run"]  # type: ignore[index,call-overload]
    return isinstance(run, dict) and run.get("name") is None


@contextlib.contextmanager
def no_environment() -> Iterator[None]:
    """While values are resolved: ConfigError instead of what ${oc.env:...} stands for, which may be a secret."""

    def refuse(name: str, *default: Any) -> Any:
        asked.append(name)
        raise ConfigError("values from the environment")

    asked: list[str] = []
    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    except OmegaConfBaseException as e:
        if asked:
            raise ConfigError(
                f"{e.full_key}=${{oc.env:{asked[0]}}}: values from the environment would be written to the run's "
                "config.yaml; give the value itself, or the path of a file that holds it"
            ) from None
        said: BaseException | None = e
        while said and not isinstance(said, ConfigError):  # which a reference to prepared shards may have raised
            said = said.__context__
        raise said or ConfigError(one_line(e)) from None
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _name(cfg: DictConfig, choices: dict[str, str | None]) -> str:
    """The experiment's (or model's and data set's) name, with the signature where other keys differ from it."""
    config = typed(cfg)
    if choices.get("experiment"):
        name, plain = str(choices["experiment"]), [f"experiment={choices['experiment']}"]
    else:
        name = f"{choices['model']}-{config.data.name}"
        plain = [f"model={choices['model']}", f"data={choices['data']}"]
    own, same_files = signature(config), compose_with_choices(plain)[0]
    same_files.data.path = str(config.data.path)  # which data=folder has no default of
    same = own == signature(typed(same_files))
    return name.replace("/", "-") if same else f"{name.replace('/', '-')}-{own}"


def compose_with_choices(overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration without a filled-in name, and the choice of every group. Raises ConfigError."""
    # Group names in optim.groups are the model's, so any key may be added there.
    opened = [f"++{o}" if o.startswith("optim.groups.") else o for o in one_length(overrides)]
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            cfg = hydra_compose("config", opened, return_hydra_config=True)
            choices = dict(cfg.hydra.runtime.choices)
            with_hydra = OmegaConf.to_container(cfg, resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError) as e:  # ValueError: of data=null
        raise ConfigError(_explain(e, overrides)) from e
    assert isinstance(with_hydra, dict)
    with_hydra.pop("hydra")
    return OmegaConf.create(with_hydra), choices


def one_length(overrides: list[str]) -> list[str]:
    """The overrides, in which a length, in steps or in epochs, replaces the other one of the files."""
    given = {o.partition("=")[0].lstrip("+") for o in overrides}
    keys = ["trainer.max_steps", "trainer.max_epochs"]
    other = [k for k in keys if k not in given]
    return [*overrides, f"{other[0]}=null"] if len(other) == 1 else overrides


def _explain(error: Exception, overrides: list[str]) -> str:
    """Hydra's complaint, as the key, the value and the allowed names where it is about an unknown key."""
    groups = {p.name for p in CONFIGS.iterdir() if p.is_dir()}
    if overrides:
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
        except HydraException as e:
            return one_line(e)
        chosen = [o.input_line or "" for o in parsed if o.key_or_group in groups]
        for o in parsed:
            key, line = o.key_or_group, o.input_line or ""
            message = _unknown_choice(o) if key in groups else _unknown_key(chosen, key, line)
            if message:
                return message
            if o.is_sweep_override():
                return f"{line}: several values are a sweep: dtrain-sweep -m, or launch/sweep.py; a list is [a, b]"
    return one_line(error)


def _unknown_choice(override: Override) -> str | None:
    """That a group has no such file, and which it has."""
    group, name = override.key_or_group, None if override.is_sweep_override() else override.value()
    folder = CONFIGS / group
    if override.is_sweep_override() or (isinstance(name, str) and (folder / f"{name}.yaml").is_file()):
        return None
    names = sorted(str(f.relative_to(folder).with_suffix("")) for f in folder.rglob("*.yaml"))
    return (
        f"{override.input_line}: there is no {group}/{'null' if name is None else name}; allowed: {', '.join(names)}"
    )


# What other trainers call a key of this one.
OTHER_NAMES = {"learning_rate": "lr", "epochs": "max_epochs", "steps": "max_steps"}


def _named(node: Any, name: str, prefix: str = "") -> list[str]:
    """The whole keys that end in a name."""
    if not isinstance(node, DictConfig):
        return []
    own = [prefix + name] if name in node.keys() else []  # noqa: SIM118  # `in node` resolves references
    return own + [key for k in map(str, node) for key in _named(node._get_node(k), name, f"{prefix}{k}.")]


def _unknown_key(chosen: list[str], key: str, line: str) -> str | None:
    try:
        whole = compose_with_choices(chosen)[0]
    except ConfigError:
        return None  # a wrong group choice: Hydra's own message lists the choices
    node: Any = whole
    for depth, part in enumerate(key.split(".")):
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                return f"{line}: {'.'.join(key.split('.')[:depth])} has the rows 0 to {len(node) - 1}, not {part}"
            node = node[int(part)]
            continue
        if not isinstance(node, DictConfig):
            return f"{line}: {'.'.join(key.split('.')[:depth])} is a value, it has no key {part!r}"
        names = sorted(map(str, node))
        if part not in names:
            close = difflib.get_close_matches(part, [*names, *(["lambda"] if not depth else [])], n=1)
            meant = _named(whole, OTHER_NAMES.get(part, part)) or [repr(name) for name in close]
            hint = f"; did you mean {' or '.join(meant)}?" if meant else ";"
            where = ".".join(key.split(".")[:depth]) or "the configuration"
            return f"{line}: unknown key {part!r}{hint} {where} has: {', '.join(names)}"
        node = node._get_node(part)
    return None


def load(path: Path) -> DictConfig:
    """A frozen configuration: the config.yaml of a run folder.

    Keys of the trainer and the evaluation that it lacks, since an earlier version wrote it, take their defaults.
    """
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError as e:
        raise ConfigError(f"no configuration file {path}") from e
    except (OSError, ValueError, YAMLError) as e:
        raise ConfigError(f"{path} is no configuration file: {e}") from e
    if not cfg:
        raise ConfigError(f"{path} is empty: remove it, or the folder it is in")
    defaults = compose_with_choices([])[0]
    later = OmegaConf.create({section: defaults[section] for section in ("trainer", "evaluate")})
    merged = OmegaConf.merge(later, cfg)
    assert isinstance(merged, DictConfig)
    return merged


def typed(cfg: DictConfig) -> Config:
    """Types and ranges of every key but the model's arguments, which need torch. Raises ConfigError."""
    return parse(resolved(cfg))


def resolved(cfg: DictConfig) -> Any:
    """The values that the configuration's references stand for in their place. Raises ConfigError."""
    with no_environment():
        return OmegaConf.to_container(cfg, resolve=True)


def read(cfg: DictConfig) -> Config:
    """Types and ranges of every key, the model's arguments included. Raises ConfigError."""
    config = typed(cfg)
    model_arguments(config)
    return config
