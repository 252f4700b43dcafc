"""A run folder opened for evaluation: its configuration, and all that is built from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dtrain import compose as configs
from dtrain.config import Config, ConfigError
from dtrain.target import check_trusted
from dtrain.wording import one_line

if TYPE_CHECKING:
    from dtrain.evaluate.evaluator import Evaluator
    from dtrain.evaluate.progress import Bar
    from dtrain.trainer import Trainer


def read_config(folder: Path, overrides: Sequence[str], modules: Sequence[str]) -> Config:
    """The run's configuration with overrides of evaluate.<key>. Raises ConfigError.

    modules: those of models outside dtrain.models that may be imported.
    """
    cfg = _overridden(configs.load(folder / "config.yaml"), overrides)
    check_trusted(configs.typed(cfg), modules)
    return configs.read(cfg)


@contextmanager
def opened(config: Config, folder: Path, bar: Bar | None = None) -> Iterator[tuple[Trainer, Evaluator]]:
    """The run's trainer, with new weights until it restores some, and its evaluator. Raises ConfigError.

    Interrupted where a signal asks to stop. bar: shows how far an evaluation has come.
    """
    from dtrain import precision
    from dtrain.build import build_algorithm, build_loaders, build_site, facts, open_data
    from dtrain.evaluate.evaluation import Evaluation
    from dtrain.evaluate.evaluator import Evaluator
    from dtrain.evaluate.preflight import check, check_model
    from dtrain.faults import StopSignal
    from dtrain.trainer import Trainer
    from dtrain.world import leave, start

    splits = open_data(config)
    check(config.evaluate, splits[0])
    algorithm = build_algorithm(config, facts(splits[0]))
    check_model(config.evaluate, algorithm, splits[0])
    world = start(config.trainer.device, config.trainer.timeout, config.trainer.deterministic)
    precision.use(config.trainer.precision)
    try:
        train, valid, test = build_loaders(config, algorithm, splits, world)
        stop = StopSignal(world)
        site = build_site(config, algorithm, train, world, folder, stop)
        evaluation = Evaluation(algorithm, site, valid, config.evaluate, config.run.root / "statistics")
        evaluator = Evaluator(evaluation, replace(evaluation, heldout=test))
        if bar is not None:
            evaluator = bar.follow(evaluator)
        yield Trainer(config, algorithm, site, stop, evaluator), evaluator
    finally:
        leave()


def restore(trainer: Trainer, finished: bool) -> None:
    """Loads the newest checkpoint, or a finished run's result. ConfigError if there is none."""
    found = trainer.restore()
    if finished and trainer.judge.patience:
        found = trainer.restore(best=True)
    if not found:
        raise ConfigError(f"{trainer.site.folder} has no checkpoint that verifies: there is nothing to evaluate yet")


def _overridden(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    overrides = [f"evaluate.{o}" if o.startswith("text=") else o for o in overrides]
    texts = [o for o in overrides if o.startswith("evaluate.text=")]
    overrides = [o for o in overrides if o not in texts]
    for override in overrides:
        if not override.startswith("evaluate.") or "=" not in override:
            raise ConfigError(f"{override}: only evaluate.<key>=<value> can be set here, the run is what it is")
    try:
        merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException) as e:
        why = "is no YAML value" if isinstance(e, YAMLError) else one_line(e)
        raise ConfigError(f"{' '.join(overrides)}: {why}") from e
    assert isinstance(merged, DictConfig)
    for text in texts:  # as it stands: a sentence is not YAML, nor does it refer to other keys
        value = text.partition("=")[2]
        merged.evaluate.text = None if value == "null" else value.replace("${", "\\${")
    return merged
