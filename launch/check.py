"""Whether a configuration's model can be built, and its data opened: what a run checks before it starts.

That takes torch, which takes seconds to load. So what was found good is remembered, for as long as neither the code,
nor the data, nor the model's configuration changes.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from omegaconf import OmegaConf

from dtrain.config import Config, ConfigError, validate

_DTRAIN = Path(__file__).resolve().parent.parent / "dtrain"


def build_errors(configs: list[Config], known: Path) -> list[str | None]:
    """For each configuration, why it cannot be built, or None. known: the file of those found good before."""
    good = set(known.read_text().split()) if known.exists() else set()
    found: dict[str, str | None] = dict.fromkeys(good)
    keys = [_key(c) for c in configs]
    for key, config in zip(keys, configs, strict=True):
        if key not in found:
            found[key] = _build_error(config)
    new = [key for key in dict.fromkeys(keys) if key not in good and found[key] is None]
    if new:
        known.parent.mkdir(parents=True, exist_ok=True)
        with known.open("a") as f:
            f.write("".join(f"{key}\n" for key in new))
    return [found[key] for key in keys]


def _build_error(config: Config) -> str | None:
    import torch

    from dtrain.build import build_algorithm, open_data

    try:
        validate(OmegaConf.create(config.model_dump(mode="json")))
        train, _ = open_data(config)
        with torch.device("meta"):  # shapes without memory
            build_algorithm(config, train.image_shape)
    except ConfigError as e:
        return str(e)
    return None


def _key(config: Config) -> str:
    """A digest of all that the answer depends on."""
    data = config.data
    manifests = [data.path / split / "manifest.json" for split in (data.train, data.test)]
    content = config.model_dump_json(exclude={"seed", "run", "loader", "evaluate"})
    parts = [_code(), content, *(str(m.stat().st_mtime_ns) if m.exists() else "missing" for m in manifests)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(_DTRAIN.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
