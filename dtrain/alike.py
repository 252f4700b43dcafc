"""What the members of a pack have in common, and the numbers in which they differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from dtrain.config import Config, ConfigError
from dtrain.data.batch import Batch
from dtrain.models.base import Algorithm
from dtrain.noise import Noise, site_key
from dtrain.report.differences import flat
from dtrain.target import completed, model_arguments

OPTIMIZER = (
    "lr", "betas", "eps", "weight_decay", "clip_norm", "schedule", "warmup_images", "decay_images", "decay_factor",
)  # fmt: skip
# What a pack cannot do: key of the trainer -> the value that it can.
PLAIN = {
    "micro_batches": 1, "precision": "fp32", "compile": False, "activation_checkpointing": False,
    "channels_last": False, "on_nonfinite": "raise",
}  # fmt: skip
OWN = set(vars(nn.Module()))  # of torch's own attributes of a network


def shared(config: Config) -> dict[str, Any]:
    """What all members of a pack have in common, by dotted key: all but seed, run, OPTIMIZER, and the model's floats.

    Of those, whether one is 0: a term may be left out then.
    """
    _, arguments = model_arguments(completed(config))
    content = config.model_dump(mode="json", exclude={"seed": True, "run": True, "model": True})
    for settings in (content["optim"]["default"], *content["optim"]["groups"].values()):
        for key in OPTIMIZER:
            settings.pop(key, None)
    content["optim"]["groups"] = {k: v for k, v in content["optim"]["groups"].items() if v}
    model = {k: ("not 0" if v else "0") if isinstance(v, float) else str(v) for k, v in arguments.items()}
    return flat({**content, "model": {"_target_": config.model["_target_"], **model}})


def architecture(config: Config) -> str:
    """A digest of it: configurations of the same one make a pack."""
    return hashlib.sha256(json.dumps(shared(config), sort_keys=True).encode()).hexdigest()


def check_alike(configs: Sequence[Config]) -> None:
    """ConfigError, naming the key, unless the configurations make a pack."""
    first = shared(configs[0])
    for other in map(shared, configs[1:]):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ConfigError(
                    f"{key}: is {first.get(key)} in one member of the pack and {other.get(key)} in another; they may "
                    f"differ in seed, in the model's floats and in an optimizer's {', '.join(OPTIMIZER)}"
                )
    trainer = configs[0].trainer
    for key, value in PLAIN.items():
        if getattr(trainer, key) != value:
            raise ConfigError(f"trainer.{key}={getattr(trainer, key)}: a pack has {value}; train the runs alone")
    if trainer.checkpoint.keep < 2:
        raise ConfigError("trainer.checkpoint.keep=1: a pack goes on from a step that all members have; at least 2")


def check_algorithm(algorithm: Algorithm, config: Config) -> None:
    """ConfigError unless a pack can train it."""
    name, stages = type(algorithm).__name__, algorithm.stages()
    if len(stages) > 1 or stages[0].source is not None:
        raise ConfigError(
            f"{name} trains in stages, or not on images; a pack has one stage on images: train it alone"
        )
    for group in algorithm.groups:
        settings = config.optim.of(group)
        if settings.name not in ("adam", "adamw"):
            raise ConfigError(f"optim.groups.{group}.name={settings.name}: a pack has adam and adamw")


@dataclass(frozen=True, eq=False)
class Each:
    """A value of each member, stacked: [E, ...]. A step may pass it on, and nothing else."""

    stack: Tensor

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("it differs between the members of a pack: a step can pass it on, but not branch on it")

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __float__ = __int__ = _refuse
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class NoiseOfEach(Noise):
    """Noise at the same positions for members of several seeds."""

    seeds: tuple[int, ...] = ()

    def inner(self, iteration: int) -> NoiseOfEach:
        return replace(self, seeds=tuple(site_key(s, f"inner {iteration}") for s in self.seeds))


class _NoiseOfOne(Noise):
    """That of the member at hand under vmap, whose seed is a tensor: its sites cannot be looked up in a table."""

    def ahead(self, shapes: Any) -> _NoiseOfOne:
        return self


Fill = Callable[[Sequence[Tensor]], Any]


def opened(value: Any, slots: list[Tensor]) -> Fill:
    """Appends the stacks in an argument to the slots; returns what puts one member's values in their place."""
    if isinstance(value, Each):
        slots.append(value.stack)
        at = len(slots) - 1
        return lambda filled: filled[at]
    if isinstance(value, NoiseOfEach):
        slots.append(torch.tensor(value.seeds, device=value.position.device))
        at = len(slots) - 1
        return lambda filled: _NoiseOfOne(cast(Any, filled[at]), value.position, value.dtype)
    if isinstance(value, Batch):
        parts = {f.name: opened(getattr(value, f.name), slots) for f in fields(value)}
        return lambda filled: Batch(**{k: part(filled) for k, part in parts.items()})
    if isinstance(value, list | tuple):
        items = [opened(v, slots) for v in value]
        return lambda filled: type(value)(item(filled) for item in items)
    return lambda filled: value


def of_member(value: Any, e: int) -> Any:
    """One member's part of an argument."""
    if isinstance(value, NoiseOfEach):
        return Noise(value.seeds[e], value.position, value.dtype)
    slots: list[Tensor] = []
    fill = opened(value, slots)
    if isinstance(value, Batch) and isinstance(value.noise, NoiseOfEach):
        return replace(fill([s[e] for s in slots]), noise=of_member(value.noise, e))
    return fill([s[e] for s in slots])


def stacked(items: Sequence[Any]) -> Any:
    """Batches of several seeds as one: Each of [E, ...] for every field, noise of all seeds."""
    first = items[0]
    noise = NoiseOfEach(0, first.noise.position, first.noise.dtype, seeds=tuple(b.noise.seed for b in items))
    found: dict[str, Any] = {}
    for f in fields(first):
        values = [getattr(b, f.name) for b in items]
        found[f.name] = None if values[0] is None else noise if f.name == "noise" else Each(torch.stack(values))
    return Batch(**found)


def varying(members: Sequence[Algorithm]) -> list[tuple[str, str, Any]]:
    """(path of a network, its attribute, the value) of the attributes with floats that differ, which are Each there.

    ConfigError naming what else differs.
    """
    like = next(members[0].parameters())
    found = []
    for (path, first), *others in zip(*(m.named_modules() for m in members), strict=True):
        nets = [first, *(net for _, net in others)]
        for name in sorted(vars(first).keys() - OWN):
            where = f"{type(first).__name__}.{name}"
            value = _merged([vars(net).get(name) for net in nets], where, like)
            if value is not vars(first)[name]:
                found.append((path, name, value))
    return found


def _merged(values: list[Any], where: str, like: Tensor) -> Any:
    """The first of equal values; a copy of it with Each for the floats that differ."""
    first = values[0]
    if any(type(v) is not type(first) for v in values):
        _differ(where, values)
    if isinstance(first, float):
        return first if values.count(first) == len(values) else Each(like.new_tensor(values))
    if isinstance(first, list | tuple | dict):
        keys = list(first) if isinstance(first, dict) else range(len(first))
        if any(len(v) != len(first) or (isinstance(first, dict) and v.keys() != first.keys()) for v in values):
            _differ(where, values)
        items = [_merged([v[k] for v in values], where, like) for k in keys]
        if all(item is first[k] for item, k in zip(items, keys, strict=True)):
            return first
        return dict(zip(keys, items, strict=True)) if isinstance(first, dict) else type(first)(items)
    if not all(_same(first, v) for v in values[1:]):
        _differ(where, values)
    return first


def _same(a: Any, b: Any) -> bool:
    if a is b or isinstance(a, nn.Module):
        return True
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, MethodType | FunctionType | partial):
        return _same_function(a, b)
    if is_dataclass(a):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def _same_function(a: Any, b: Any) -> bool:
    if isinstance(a, MethodType):
        return a.__func__ is b.__func__
    if isinstance(a, partial):
        return _same(a.func, b.func) and a.args == b.args and a.keywords == b.keywords
    cells = zip(a.__closure__ or (), b.__closure__ or (), strict=True) if a.__code__ is b.__code__ else None
    return cells is not None and all(_same(x.cell_contents, y.cell_contents) for x, y in cells)


def _differ(where: str, values: list[Any]) -> NoReturn:
    said = ", ".join(dict.fromkeys(str(v) for v in values))
    raise ConfigError(
        f"the members of the pack are of different structure: {where} is {said}; a float of the model that is 0 in "
        "one and not in another may leave a term out: train these runs apart"
    )
