"""The model that a configuration names: its class, and its arguments as the class's annotations want them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from dtrain.config import Config, ConfigError, checked


def model_target(config: Config) -> tuple[Any, dict[str, Any]]:
    """The Algorithm class that model._target_ names, and the other model keys. Raises ConfigError."""
    arguments = dict(config.model)
    name = arguments.pop("_target_", None)
    module, _, cls = str(name).rpartition(".")
    if not module:
        raise ConfigError(
            f"model._target_={name}: is no class; does the model's file begin with # @package _global_?"
        )
    try:
        target = getattr(import_module(module), cls)
    except Exception as e:  # whatever the module raises on import
        raise ConfigError(f"model._target_={name}: cannot be imported ({e})") from e
    from dtrain.models.base import Algorithm  # loads torch, as the target's module has

    if not (isinstance(target, type) and issubclass(target, Algorithm)):
        raise ConfigError(f"model._target_={name}: is no Algorithm")
    return target, arguments


def check_trusted(config: Config, modules: Sequence[str]) -> None:
    """ConfigError unless the model comes from dtrain.models, or from a module that the caller names.

    For the configuration of a foreign run: importing a module executes it.
    """
    module = str(config.model.get("_target_")).rpartition(".")[0]
    if not module.startswith("dtrain.models.") and module not in modules:
        raise ConfigError(f"model._target_ is of the module {module}: if you trust it, name it with --model {module}")


def completed(config: Config) -> Config:
    """The configuration with the model's own defaults for the arguments it does not name."""
    target, arguments = model_target(config)
    known = inspect.signature(target.__init__).parameters.values()
    defaults = {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    return config.model_copy(update={"model": {"_target_": config.model["_target_"], **defaults, **arguments}})


@functools.cache
def arguments_of(function: Callable[..., Any]) -> type[BaseModel]:
    """The function's keyword-only arguments, with the types, ranges and defaults of its annotations."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return create_model("Arguments", __config__=config, **fields)


def check_arguments(function: Callable[..., Any], given: dict[str, Any], where: str) -> dict[str, Any]:
    """`given` as the annotations of the function's keyword-only arguments want it. Raises ConfigError."""
    found = checked(arguments_of(function), given, where)
    return {name: getattr(found, name) for name in given}


def model_arguments(config: Config) -> tuple[Any, dict[str, Any]]:
    """The Algorithm class, and the arguments given to it, checked by its annotations. Raises ConfigError."""
    target, arguments = model_target(config)
    return target, check_arguments(target.__init__, arguments, "model")
