"""dtrain.load: a trained model to encode, decode and sample with, in a notebook or a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm, facts, open_data
from dtrain.checkpoint import Checkpointer, CheckpointError, folder_of, verify
from dtrain.config import Config, ConfigError
from dtrain.files import read_json
from dtrain.models.base import Algorithm, DataFacts
from dtrain.noise import Noise
from dtrain.results import last_evaluations, metrics_on
from dtrain.target import check_trusted
from dtrain.tensors import model_state
from dtrain.world import World

WEIGHTS = "model.safetensors"  # of an exported model
CHUNK = 64  # samples decoded at a time


@dataclass(frozen=True)
class Trained:
    """An algorithm in evaluation mode with a run's result.

    Images go in as float [B, C, H, W] in [0, 1] or uint8 [B, C, H, W], and come out as float [B, C, H, W] in [0, 1].
    metrics: of the last evaluation, by split: trained.metrics["test"]["mse/level1"]. step: of the weights.
    """

    algorithm: Algorithm
    config: Config
    metrics: dict[str, dict[str, float]]
    step: int
    device: torch.device

    @property
    def levels(self) -> int:
        """Depth of the latent hierarchy."""
        return self.algorithm.levels

    @property
    def priors(self) -> list[str]:
        """The names of the generative models."""
        given = {None: None, "labels": torch.zeros(1, dtype=torch.long), "embeddings": torch.zeros(1, 1)}
        return list(self.algorithm.priors(given[self.algorithm.condition]))

    def prior(self, name: str | None) -> str:
        """The name itself, or of the first generative model. ConfigError for one that there is not."""
        known = self.priors
        chosen = name or next(iter(known), "")
        if chosen not in known:
            raise ConfigError(f"prior={name}: {type(self.algorithm).__name__} has {', '.join(known) or 'none'}")
        return chosen

    @torch.no_grad()
    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        """Images to the codes of a level, [B, ...]; their means where the encoder is stochastic."""
        return self.algorithm.encode(self._scaled(x), self._level(level))

    @torch.no_grad()
    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        """Codes of a level to images."""
        return self._unit(self.algorithm.decode(z.to(self.device), self._level(level)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, level: int = 1) -> Tensor:
        """Images encoded up to a level and decoded down again."""
        return self._unit(self.algorithm.reconstruct(self._scaled(x), self._level(level)))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        prior: str | None = None,
        condition: int | Sequence[int] | Tensor | None = None,
        seed: int = 0,
        start: int = 0,
    ) -> Tensor:
        """`count` images of a generative model, the first by default.

        The n-th depends on seed and start + n alone: sample(64) begins as the samples.png of a run with
        evaluate.seed=0 does. condition: labels (one for all, or `count`) or embeddings [count, E] or [1, E].
        ConfigError for a condition that is missing or of another kind, or a prior that the model does not have.
        """
        every, name, images = self._condition(condition, count), self.prior(prior), []
        for begin in range(0, count, CHUNK):
            rows = slice(begin, min(begin + CHUNK, count))
            noise = Noise.of(rows.stop - begin, seed, start + begin, self.device)
            priors = self.algorithm.priors(None if every is None else every[rows])
            images.append(self._unit(self.algorithm.decode(priors[name](noise))))
        return torch.cat(images)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 10, level: int = 1) -> Tensor:
        """Images on the lines between the codes of a and b, both [B, C, H, W]: [B, steps, C, H, W]."""
        start, end = self.encode(a, level), self.encode(b, level)
        at = torch.linspace(0, 1, steps, device=self.device)
        return torch.stack([self.decode(torch.lerp(start, end, t), level) for t in at], 1)

    def _scaled(self, x: Tensor) -> Tensor:
        """In the algorithm's own range. ConfigError for another shape, or floats out of [0, 1]."""
        shape = self.config.data.image_shape
        if x.ndim != 4 or tuple(x.shape[1:]) != tuple(shape):
            raise ConfigError(f"images must be [B, {', '.join(map(str, shape))}], got {list(x.shape)}")
        x = x.to(self.device)
        unit = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        if len(unit) and not (float(unit.min()) >= 0 and float(unit.max()) <= 1):
            raise ConfigError("images must be uint8, or floats in [0, 1]")
        low, high = self.algorithm.value_range
        return low + (high - low) * unit

    def _unit(self, x: Tensor) -> Tensor:
        low, high = self.algorithm.value_range
        return ((x - low) / (high - low)).clamp(0, 1)

    def _level(self, level: int) -> int:
        if not 1 <= level <= self.levels:
            raise ConfigError(f"level={level}: {type(self.algorithm).__name__} has 1 to {self.levels}")
        return level

    def _condition(self, given: Any, count: int) -> Tensor | None:
        kind, name = self.algorithm.condition, type(self.algorithm).__name__
        if kind is None or given is None:
            if kind or given is not None:
                raise ConfigError(f"condition: {name} is conditioned on {kind or 'nothing'}")
            return None
        every = torch.as_tensor(given, device=self.device)
        every = every.long().reshape(-1) if kind == "labels" else every.float().reshape(-1, every.shape[-1])
        if len(every) not in (1, count):
            raise ConfigError(f"condition: give 1 or {count} rows for {count} samples, got {len(every)}")
        return every.expand(count, *every.shape[1:])


def load(path: str | Path, device: str | torch.device | None = None, modules: Sequence[str] = ()) -> Trained:
    """The result of a run folder, of a checkpoint in it (…/checkpoints/step-…), or of what dtrain.export wrote.

    Averaged weights where the run keeps some; of a finished run that stops by patience the best. No training data are
    needed where the run recorded its facts. device: the GPU where there is one, else the CPU. modules: of models
    outside dtrain.models, which may be imported; nothing else that the run brings is executed. Raises ConfigError.
    """
    path = Path(path)
    folder = folder_of(path)
    cfg = configs.load(folder / "config.yaml")
    check_trusted(configs.typed(cfg), modules)
    config = configs.read(cfg)
    algorithm = build_algorithm(config, _facts(folder, config))
    if (folder / WEIGHTS).exists():
        step = _read_exported(algorithm, folder / WEIGHTS)
    else:
        step = _restore(algorithm, config, folder, path if path != folder else None)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    lines = last_evaluations(folder) if (folder / "metrics.jsonl").exists() else []
    metrics = {split: metrics_on(split, lines) for split in ("valid", "test")}
    return Trained(algorithm.to(place).eval().requires_grad_(False), config, metrics, step, place)


def _read_exported(algorithm: Algorithm, file: Path) -> int:
    """Reads weights that dtrain.export wrote; returns their step."""
    from safetensors import SafetensorError, safe_open

    state = model_state(algorithm)
    try:
        with safe_open(file, "pt") as stored:
            found = {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118  # it is no dictionary
            step = int(stored.metadata()["step"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as e:
        raise ConfigError(f"{file} is damaged: {e}") from e
    wrong = sorted(set(found) ^ set(state)) or [k for k, v in state.items() if v.shape != found[k].shape]
    if wrong:
        raise ConfigError(f"{file}: {wrong[0]} is missing, or of another model")
    for name, tensor in state.items():
        tensor.copy_(found[name])
    return step


def _facts(folder: Path, config: Config) -> DataFacts:
    """As the run recorded them; else of its data."""
    stored = read_json(folder / "environment.json").get("facts")
    if stored is None:
        return facts(open_data(config)[0])
    try:
        lists = {name: tuple(stored[name]) for name in ("image_shape", "attributes")}
        return DataFacts(**{**stored, **lists})
    except (TypeError, KeyError) as e:
        raise ConfigError(f"{folder / 'environment.json'}: its facts are damaged ({e})") from e


def _restore(algorithm: Algorithm, config: Config, folder: Path, chosen: Path | None) -> int:
    """Reads the weights, averaged ones in place of those that they average; returns their step."""
    checkpoints = Checkpointer(folder / "checkpoints", config.trainer.checkpoint, World(), print)
    try:
        found = (chosen, verify(chosen)) if chosen else checkpoints.result()
        if not found:
            raise ConfigError(f"{folder} has no checkpoint that verifies")
        checkpoints.load_result(found[0], model_state(algorithm))
    except CheckpointError as e:
        raise ConfigError(str(e)) from e
    return int(found[1]["step"])
