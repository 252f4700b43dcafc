"""What of a run's configuration differs from the experiment's (or model's and data set's) own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtrain import compose as configs
from dtrain.config import CONFIGS, ConfigError
from dtrain.files import read_json

Difference = tuple[str, Any, Any]  # key, the file's value, the run's; None where there is none


def differences(folder: Path, command: list[str]) -> tuple[str, list[Difference]]:
    """What the run's config.yaml is compared with, and where it differs. ConfigError for a damaged config.yaml."""
    own = OmegaConf.to_container(configs.load(folder / "config.yaml"), resolve=False)
    chosen = choices(command)
    with configs.no_environment():
        base = OmegaConf.to_container(configs.compose_with_choices(chosen)[0], resolve=True)
    if not isinstance(own, dict) or not isinstance(base, dict):
        raise ConfigError(f"{folder / 'config.yaml'} is no configuration file")
    ours, theirs = flat(own), flat(base)  # type: ignore[arg-type]
    for operational in ("run.name", "run.dir", "run.root"):
        ours.pop(operational, None)
        theirs.pop(operational, None)
    keys = [*ours, *(k for k in theirs if k not in ours)]
    found = [(k, theirs.get(k), ours.get(k)) for k in keys if ours.get(k) != theirs.get(k)]
    return " ".join(chosen) or "the defaults", found


def started_by(folder: Path, environment: dict[str, Any]) -> list[str]:
    """The arguments of the command that a person gave: of a sweep's point, the sweep's."""
    own = words(environment.get("command"))[1:]
    if "--config" not in own:
        return own
    submission = read_json(folder / "owner.json").get("submission")
    sweep = read_json(Path(submission).parent.parent / "sweep.json") if isinstance(submission, str) else {}
    return words(sweep.get("command")) or own


def words(command: Any) -> list[str]:
    """The command as it was stored, without what is no word."""
    return [w for w in command if isinstance(w, str)] if isinstance(command, list) else []


def choices(command: list[str]) -> list[str]:
    """The words of a command that choose a file in configs/."""
    names = {p.name for p in CONFIGS.iterdir() if p.is_dir()} - {"launcher", "lambda"}
    files = {
        f"{name}={file.relative_to(CONFIGS / name).with_suffix('')}"
        for name in names
        for file in (CONFIGS / name).rglob("*.yaml")
    }
    return [word for word in command if word in files]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
