"""From a checked configuration to the objects of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dtrain.config import Config, ConfigError, TrainerConfig, of_stage
from dtrain.data.build import Loader, build_loader, loader_class
from dtrain.data.shards import ShardError, Split, open_split
from dtrain.faults import StopSignal
from dtrain.length import check as check_length
from dtrain.metrics import larger_is_better
from dtrain.models.base import Algorithm, DataFacts, Site
from dtrain.nets.recompute import Recomputable
from dtrain.target import check_arguments, model_arguments
from dtrain.tensors import digest
from dtrain.world import World


def open_data(config: Config) -> tuple[Split, Split, Split]:
    """The training, validation and test split. ConfigError naming the command that prepares them."""
    data = config.data
    if (data.path / data.train).is_dir() and not (data.path / data.valid).is_dir():
        raise ConfigError(f"data.path={data.path}: has no {data.valid} split; prepare it again with: {data.prepare}")
    try:
        train, valid, test = (open_split(data.path / split) for split in (data.train, data.valid, data.test))
    except ShardError as e:
        raise ConfigError(f"data.path={data.path}: {e}\n  prepare the shards with: {data.prepare}") from e
    for split in (train, valid, test):
        if split.image_shape != data.image_shape:
            raise ConfigError(
                f"data.image_shape={list(data.image_shape)}: the images in {split.path} are {list(split.image_shape)}"
            )
    return train, valid, test


def facts(split: Split) -> DataFacts:
    """What an algorithm may know of the data."""
    labels, embeddings = (split.arrays.get(name) for name in ("labels", "embeddings"))
    classes = len(split.class_names) or (None if labels is None else int(labels.max()) + 1)
    dims = None if embeddings is None else embeddings.shape[-1]
    return DataFacts(split.image_shape, classes, tuple(split.attribute_names), dims, len(split.images))


def build_algorithm(config: Config, data: DataFacts) -> Algorithm:
    """The model, with weights drawn from the seed. ConfigError if it refuses its arguments, or the data."""
    target, arguments = model_arguments(config)
    torch.manual_seed(config.seed)
    try:
        algorithm: Algorithm = target(data, **arguments)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    if algorithm.condition and not (data.classes if algorithm.condition == "labels" else data.embedding):
        raise ConfigError(f"{target.__name__} is conditioned on {algorithm.condition}, which the data does not have")
    for group, path in ((g, p) for g, paths in algorithm.groups.items() for p in paths):
        if path not in dict(algorithm.named_modules()):
            raise ConfigError(f"{target.__name__}.groups[{group!r}] names {path!r}, a network that it does not have")
    check_length(config.trainer, [stage.name for stage in algorithm.stages()])
    for stage in algorithm.stages():
        metric = of_stage(config.trainer.checkpoint.best, stage.name)
        if metric:
            try:
                larger_is_better(metric)
            except ConfigError as e:
                raise ConfigError(f"trainer.checkpoint.best={e}") from e
    _check_batch(config.trainer, algorithm)
    if config.trainer.activation_checkpointing:
        nets = [m for m in algorithm.modules() if isinstance(m, Recomputable)]
        if not nets:
            raise ConfigError(f"trainer.activation_checkpointing=true: no network of {target.__name__} offers it")
        for net in nets:
            net.recompute_activations = True
    return algorithm


def _check_batch(trainer: TrainerConfig, algorithm: Algorithm) -> None:
    coupled = algorithm.batch_coupled or any(isinstance(m, _BatchNorm) for m in algorithm.modules())
    if coupled and trainer.batch_size < 2:
        raise ConfigError(
            f"trainer.batch_size=1: {type(algorithm).__name__} compares the images of a batch; at least 2"
        )
    if trainer.batch_size % algorithm.batch_multiple:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size}: {type(algorithm).__name__} needs a multiple of "
            f"{algorithm.batch_multiple}"
        )
    if trainer.micro_batches == 1:
        return
    key, name = f"trainer.micro_batches={trainer.micro_batches}", type(algorithm).__name__
    if algorithm.batch_coupled:
        raise ConfigError(
            f"{key}: the loss of {name} couples the samples of a batch (MMD), so parts of "
            "a batch do not add up to it; allowed: 1"
        )
    if trainer.sync_batchnorm and any(isinstance(m, _BatchNorm) for m in algorithm.modules()):
        raise ConfigError(
            f"{key}: {name} has batch norm, whose statistics would be those of a part of the batch; "
            "allowed: 1, or say that this is meant with trainer.sync_batchnorm=false"
        )


def build_loaders(
    config: Config, algorithm: Algorithm, splits: tuple[Split, Split, Split], world: World
) -> tuple[Loader, Loader, Loader]:
    """The training, validation and test loader of this rank."""
    trainer, range_, seed = config.trainer, algorithm.value_range, config.seed
    options = dict(config.loader)
    name = options.pop("name")
    try:
        options = check_arguments(loader_class(name).__init__, options, "loader")
        build = partial(
            build_loader, name, batch_size=trainer.batch_size, value_range=range_, seed=seed, rank=world.rank,
            world=world.size, device=world.device, **options,
        )  # fmt: skip
        train, valid, test = splits
        return build(split=train, flip=config.data.flip), build(split=valid), build(split=test)
    except (ValueError, TypeError, ImportError, ShardError) as e:
        raise ConfigError(f"loader: {e}") from e


def build_site(
    config: Config, algorithm: Algorithm, train: Loader, world: World, folder: Path, stop: StopSignal
) -> Site:
    """What the algorithm's stages and the evaluation may use."""
    return Site(folder, train, config.seed, config.trainer.batch_size, world, stop.poll, partial(digest, algorithm))
