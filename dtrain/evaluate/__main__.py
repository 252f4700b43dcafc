"""python -m dtrain.evaluate <run> [evaluate.key=value …]: numbers and pictures of a run's newest checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dtrain import compose as configs
from dtrain.config import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="evaluate.key=value", help="e.g. evaluate.projection=umap")
    arguments = parser.parse_args()
    folder: Path = arguments.run
    try:
        config = configs.read(_overridden(configs.load(folder / "config.yaml"), arguments.overrides))
        from dtrain.run import evaluate_run

        return evaluate_run(config, folder)
    except ConfigError as e:
        print(f"dtrain.evaluate: {e}", file=sys.stderr)
        return 2


def _overridden(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    for override in overrides:
        if not override.startswith("evaluate.") or "=" not in override:
            raise ConfigError(f"{override}: only evaluate.<key>=<value> can be set here, the run is what it is")
    try:
        merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException) as e:
        raise ConfigError(f"{' '.join(overrides)}: {e}") from e
    assert isinstance(merged, DictConfig)
    return merged


if __name__ == "__main__":
    sys.exit(main())
