"""What a checkpoint holds: weights, optimizer states, averaged weights and loss scales, as one flat dictionary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dtrain.models.base import Algorithm

if TYPE_CHECKING:
    from dtrain.update import Group, Updater  # loads FSDP, which the launcher's check of a model does not need

SETTINGS = ("betas", "eps", "momentum", "weight_decay")


def model_state(algorithm: Algorithm, groups: Iterable[str] | None = None) -> dict[str, Tensor]:
    """model.<path>.<name> of every network's parameters and buffers, the same names under every strategy.

    groups: of the networks of these groups only.
    """
    state: dict[str, Tensor] = {}
    for group in algorithm.groups if groups is None else groups:
        for path in algorithm.groups[group]:
            net = algorithm.get_submodule(path)
            inner = net.module if isinstance(net, DistributedDataParallel) else net
            state |= {f"model.{path}.{k}": v for k, v in inner.state_dict().items()}
    return state


def digest(algorithm: Algorithm, *groups: str) -> str:
    """16 hex digits of the named groups' weights and buffers, the same on every rank; to be called on all of them."""
    found = hashlib.sha256()
    for name, tensor in model_state(algorithm, groups).items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        found.update(name.encode() + whole.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _named(algorithm: Algorithm, group: Group) -> dict[str, Tensor]:
    names = []
    for path in algorithm.groups[group.name]:
        net = algorithm.get_submodule(path)
        inner = net.module if isinstance(net, DistributedDataParallel) else net
        names += [f"{path}.{k}" for k, _ in inner.named_parameters()]
    return dict(zip(names, group.params, strict=True))


def training_state(algorithm: Algorithm, updater: Updater) -> dict[str, Tensor]:
    """The model's state and optim.<name>.<key>, average.<name>: what the next step needs, shared storage."""
    state = model_state(algorithm)
    for group in updater.groups.values():
        for i, (name, p) in enumerate(_named(algorithm, group).items()):
            state |= {f"optim.{name}.{k}": v for k, v in group.optimizer.state.get(p, {}).items()}
            if group.average is not None:
                state[f"average.{name}"] = group.average[i]
    return state


def settings(updater: Updater) -> dict[str, Any]:
    """The optimizers' settings and the loss scales, for the checkpoint's JSON."""
    groups = {
        name: {"lr": float(group.lr)} | {k: v for k, v in group.optimizer.param_groups[0].items() if k in SETTINGS}
        for name, group in updater.groups.items()
    }
    return {"groups": groups, "scalers": {k: s.state_dict() for k, s in updater.scalers.items()}}


def restore_settings(updater: Updater, stored: dict[str, Any], device: torch.device) -> None:
    """The inverse of `settings`."""
    for name, values in stored["groups"].items():
        # JSON has no tuples.
        restored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        updater.groups[name].lr.fill_(float(restored.pop("lr")))
        updater.groups[name].optimizer.param_groups[0].update(restored)
    for label, values in stored["scalers"].items():
        updater.scalers[label] = torch.amp.GradScaler(device.type)
        updater.scalers[label].load_state_dict(values)


def allocate(algorithm: Algorithm, updater: Updater, stored: set[str]) -> None:
    """Gives every optimizer that has a stored state one to load into: a step of size zero on zero gradients."""
    for group in updater.groups.values():
        if not any(key.startswith(f"optim.{n}.") for n in _named(algorithm, group) for key in stored):
            continue
        for p in group.params:
            p.grad = torch.zeros_like(p)
        lr = float(group.lr)
        group.lr.fill_(0.0)
        group.optimizer.step()
        group.lr.fill_(lr)
        group.optimizer.zero_grad()
