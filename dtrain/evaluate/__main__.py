"""python -m dtrain.evaluate <run> [evaluate.key=value …]: numbers and pictures of a run's newest checkpoint.

text="…" is short for evaluate.text="…".
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dtrain import compose as configs
from dtrain.config import Config, ConfigError
from dtrain.files import STOPPED, read_json
from dtrain.target import check_trusted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--model", action="append", default=[], help="module of a model outside dtrain.models")
    parser.add_argument("overrides", nargs="*", metavar="evaluate.key=value", help="e.g. evaluate.projection=umap")
    arguments = parser.parse_intermixed_args()
    folder: Path = arguments.run
    try:
        cfg = _overridden(configs.load(folder / "config.yaml"), arguments.overrides)
        check_trusted(configs.typed(cfg), arguments.model)
        config = configs.read(cfg)
        return evaluate_run(config, folder)
    except ConfigError as e:
        print(f"dtrain.evaluate: {e}", file=sys.stderr)
        return 2


def evaluate_run(config: Config, folder: Path) -> int:
    """Evaluates a run's newest checkpoint, or the best one of a run that has stopped early; returns the exit code.

    Draws its pictures, and adds a line to its metrics.
    """
    from dtrain.build import build_algorithm, build_loaders, build_site, facts, open_data
    from dtrain.evaluate.evaluation import Evaluation
    from dtrain.evaluate.evaluator import Evaluator
    from dtrain.evaluate.preflight import check, check_model
    from dtrain.faults import Interrupted, StopSignal
    from dtrain.trainer import Trainer
    from dtrain.world import leave, start

    splits = open_data(config)
    check(config.evaluate, splits[0])
    algorithm = build_algorithm(config, facts(splits[0]))
    check_model(config.evaluate, algorithm, splits[0])
    world = start(config.trainer.device, config.trainer.timeout)
    try:
        train, valid, test = build_loaders(config, algorithm, splits, world)
        stop = StopSignal(world)
        site = build_site(config, algorithm, train, world, folder, stop)
        evaluation = Evaluation(algorithm, site, valid, config.evaluate, config.run.root / "statistics")
        evaluator = Evaluator(evaluation, replace(evaluation, heldout=test))
        finished = read_json(folder / "status.json").get("state") == "finished"
        Trainer(config, algorithm, site, stop, evaluator).evaluate(config.evaluate.split, finished)
        return 0
    except Interrupted:
        return STOPPED
    finally:
        leave()


def _overridden(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    overrides = [f"evaluate.{o}" if o.startswith("text=") else o for o in overrides]
    texts = [o for o in overrides if o.startswith("evaluate.text=")]
    overrides = [o for o in overrides if o not in texts]
    for override in overrides:
        if not override.startswith("evaluate.") or "=" not in override:
            raise ConfigError(f"{override}: only evaluate.<key>=<value> can be set here, the run is what it is")
    try:
        merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException) as e:
        raise ConfigError(f"{' '.join(overrides)}: {e}") from e
    assert isinstance(merged, DictConfig)
    for text in texts:  # as it stands: a sentence is not YAML, nor does it refer to other keys
        value = text.partition("=")[2]
        merged.evaluate.text = None if value == "null" else value.replace("${", "\\${")
    return merged


if __name__ == "__main__":
    sys.exit(main())
