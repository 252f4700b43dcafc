"""Whether a configuration's model can be built, and its data opened: what a run checks before it starts.

That takes torch, which takes seconds to load. So it loads in a process of its own, while the points are still being
composed; and what was found good is remembered for as long as neither the code, nor the data, nor the model's
configuration changes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dtrain.config import Config, ConfigError, parse, run_dir
from dtrain.files import replace_text
from dtrain.source import ROOT, code_hash


class Checker:
    """Builds models to see whether they can be. known: the file of those found good before with the present code."""

    def __init__(self, known: Path) -> None:
        self._known = known
        code, *good = (known.read_text() if known.exists() else "").split() or [""]
        self._good = set(good) if code == _code() else set()
        self._process = None if self._good else self._start()

    def close(self) -> None:
        """Ends the process, if nothing had to be asked."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def errors(self, configs: list[Config]) -> list[str | None]:
        """For each configuration, whose paths are absolute, why it cannot be built, or None."""
        keys = [_key(c) for c in configs]
        unknown = {key: config for key, config in zip(keys, configs, strict=True) if key not in self._good}
        found: dict[str, str | None] = dict(zip(unknown, self._ask(list(unknown.values())), strict=True))
        good = [key for key, error in found.items() if error is None]
        if good:
            self._good.update(good)
            self._known.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._known, "\n".join([_code(), *sorted(self._good)]))
        return [found.get(key) for key in keys]

    def _ask(self, configs: list[Config]) -> list[str | None]:
        if not configs:
            return []
        process = self._process or self._start()
        self._process = None
        answers, _ = process.communicate(json.dumps([c.model_dump(mode="json") for c in configs]))
        if process.returncode:
            raise RuntimeError(f"the check of the models ended with code {process.returncode}; its error is above")
        return list(json.loads(answers))

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.check"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def _errors(contents: list[dict[str, Any]]) -> list[str | None]:
    """Why each cannot be built, or None. Types and ranges are checked of each.

    Those that differ in nothing but floats are built once: floats are weights, and no structure depends on them.
    """
    from dtrain.target import model_arguments

    built: dict[str, str | None] = {}
    found: list[str | None] = []
    for content in contents:
        try:
            config = parse(content)
            _, arguments = model_arguments(config)
        except ConfigError as e:
            found.append(str(e))
            continue
        rest = config.model_dump(exclude={"seed", "run", "loader", "model"})
        structure = repr(_without_floats([config.model["_target_"], arguments, rest]))
        if structure not in built:
            built[structure] = _build_error(config)
        found.append(built[structure])
    return found


def _without_floats(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _without_floats(value.model_dump())
    if isinstance(value, dict):
        return {k: _without_floats(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_floats(v) for v in value]
    return float if isinstance(value, float) else value


def _build_error(config: Config) -> str | None:
    import torch

    from dtrain.build import build_algorithm, facts, open_data
    from dtrain.checkpoint import steps
    from dtrain.evaluate.preflight import check, check_model
    from dtrain.init import asked_for
    from dtrain.world import World

    try:
        train, _, _ = open_data(config)
        check(config.evaluate, train)
        with torch.device("meta"):  # shapes without memory
            algorithm = build_algorithm(config, facts(train))
        check_model(config.evaluate, algorithm, train)
        if not steps(run_dir(config) / "checkpoints"):
            asked_for(config, algorithm, World())
    except ConfigError as e:
        return str(e)
    return None


def paths(section: BaseModel, prefix: str = "") -> dict[str, Path]:
    """Every path in the configuration by its key, run.dir included; of the model's arguments none."""
    found: dict[str, Path] = {}
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), prefix + (field.alias or name)
        if isinstance(value, BaseModel):
            found |= paths(value, f"{key}.")
        elif isinstance(value, Path):
            found[key] = value
    return found


def _key(config: Config) -> str:
    """A digest of all that the answer depends on, but for the code."""
    data = config.data
    files = [data.path / split / "manifest.json" for split in (data.train, data.valid, data.test)]
    files += [*paths(config.evaluate).values(), *paths(config.init).values()]
    content = config.model_dump_json(exclude={"seed", "run", "loader"})
    parts = [content, *(str(f.stat().st_mtime_ns) if f.exists() else "missing" for f in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    return code_hash()


if __name__ == "__main__":
    import dtrain.build  # noqa: F401  (torch: it loads here while the points are composed)

    print(json.dumps(_errors(json.load(sys.stdin))), flush=True)
    os._exit(0)  # without the fifth of a second that torch takes to be torn down
