"""The Updater: one optimizer step of named parameter groups, the same on any number of processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from dtrain.config import ConfigError, OptimConfig, TrainerConfig
from dtrain.distributed import set_gradient_sync
from dtrain.faults import sheltered
from dtrain.group import Group, learning_rate
from dtrain.models.base import Algorithm, LossFunction, Terms
from dtrain.nets.batchnorm import batch_norms
from dtrain.noise import Noise
from dtrain.record import Metrics, Record, Row, read
from dtrain.world import World

# What FSDP2 (freed storage), torch.compile and SyncBatchNorm say to a double backward.
DOUBLE_BACKWARD = re.compile("setStorage.*storage of size 0|double backward|once_differentiable", re.DOTALL)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
T = TypeVar("T")


class Updater:
    """Called by an algorithm's step: update(groups, loss_fn, *batch), update.value(fn, *batch), update.watch(…).

    Unfreezes only these groups, their running statistics included; per micro-batch: autocast, loss, backward
    (gradients averaged over ranks on the last); clips, sets the lr of the images seen, steps, zeroes, follows the
    average; records the terms. Nothing in it waits for the device. Raises ConfigError for a group the algorithm does
    not have.
    """

    def __init__(self, algorithm: Algorithm, optim: OptimConfig, trainer: TrainerConfig, world: World) -> None:
        unknown = set(optim.groups) - set(algorithm.groups) - algorithm.without
        if unknown:
            raise ConfigError(f"optim.groups.{min(unknown)}: this model's groups are {', '.join(algorithm.groups)}")
        for name in algorithm.groups:
            if trainer.on_nonfinite == "skip" and optim.of(name).name not in ("adam", "adamw"):
                raise ConfigError(
                    f"trainer.on_nonfinite=skip needs adam or adamw, optim.groups.{name} has {optim.of(name).name}"
                )
        for norm in batch_norms(algorithm):  # those that no group owns are never moved
            norm.track_running_stats = False
        self.groups = {
            name: Group(name, [algorithm.get_submodule(p) for p in paths], optim.of(name))
            for name, paths in algorithm.groups.items()
        }
        self.micro_batches, self.compile = trainer.micro_batches, trainer.compile
        self.algorithm_name = type(algorithm).__name__
        self.device = world.device
        self.scaled = trainer.precision == "fp16"
        self.autocast = AUTOCAST.get(trainer.precision)
        self.step, self.images, self.total_images, self.measure = 0, 0, 0, True
        self.calls = 0
        self.skip = trainer.on_nonfinite == "skip" and not self.scaled
        self.records: dict[str, Record] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self._active: tuple[str, ...] = tuple(self.groups)
        self._tracking: tuple[str, ...] = ()
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, groups: str | tuple[str, ...], loss_fn: LossFunction, *batch: Any) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        active = self.activate(names)
        label = "all" if names == tuple(self.groups) else "+".join(names)
        if self.scaled and label not in self.scalers:
            self.scalers[label] = torch.amp.GradScaler(self.device.type)
        scaler = self.scalers.get(label)
        statistics = [b for g in active for b in g.statistics()] if self.skip else []
        before = [b.clone() for b in statistics]
        with self._compiling():
            terms, values = self._backward(active, scaler, self._callable(loss_fn), batch)
        # A norm is measured where something depends on it: the log, a clip, a skip.
        if self.measure or self.skip or any(g.settings.clip_norm is not None for g in active):
            norms = torch.stack(self._norms(active, scaler))
            values = torch.cat([values, norms.to(values.dtype)])
        skip = None
        if self.skip:  # gradients are averaged over ranks, so every rank finds the same
            skip = 1.0 - norms.sum().isfinite().float()
            for buffer, old in zip(statistics, before, strict=True):
                buffer.copy_(torch.where(skip > 0, old, buffer))
            values = torch.cat([values, skip.to(values.dtype)[None]])
        self._step(active, scaler, skip)
        if label not in self.records:
            self.records[label] = Record(terms, list(names))
        self.calls += 1
        self.records[label].rows.append(Row(self.step, self.calls, values))

    @torch.no_grad()
    def value(self, fn: Callable[..., T], *batch: Any) -> T:
        """fn(*batch) without gradient, in the run's precision and compiled as losses are; it moves nothing.

        Never micro-batched. What takes noise alone draws it, and is not compiled: it would be for every seed.
        """
        self._track(())
        with self._compiling():
            drawn = all(isinstance(b, Noise) for b in batch)
            return self._evaluate(fn if drawn else self._callable(fn), batch)

    def watch(self, name: str, fn: Callable[..., Terms], *batch: Any) -> None:
        """In measured steps: records the terms of fn(*batch), in full precision, with every group frozen and held."""
        if not self.measure:
            return
        self.activate(())
        terms = fn(*batch)
        label = f"watch/{name}"
        if label not in self.records:
            self.records[label] = Record(list(terms), [], trained=False)
        values = torch.stack(list(terms.values())).detach()
        self.records[label].rows.append(Row(self.step, self.calls, values))

    def begin(self, step: int, images: int, total_images: int, measure: bool = True) -> None:
        """Before a step: how many steps were done, and images seen of how many in all, for the lr.

        measure: record the gradient norms of this step, and what it watches.
        """
        self.step, self.images, self.total_images, self.measure = step, images, total_images, measure

    def activate(self, names: tuple[str, ...]) -> list[Group]:
        """Leaves requires_grad, and moving running statistics, only to the named groups."""
        if names != self._active:
            for name, group in self.groups.items():
                group.freeze(name not in names)
            self._active = names
        self._track(names)
        return [self.groups[name] for name in names]

    def _track(self, names: tuple[str, ...]) -> None:
        """Running statistics move only in the named groups."""
        if names != self._tracking:
            for name, group in self.groups.items():
                group.hold(name not in names)
            self._tracking = names

    def unfreeze(self) -> None:
        """All groups trainable: what reading or writing the optimizers' state needs."""
        self.activate(tuple(self.groups))

    def _compiling(self) -> AbstractContextManager[None]:
        """Any call may compile: its first, or one of another shape."""
        return sheltered() if self.compile else nullcontext()

    def _callable(self, fn: Callable[..., T]) -> Callable[..., T]:
        if not self.compile:
            return fn
        if fn not in self._compiled:
            self._compiled[fn] = torch.compile(fn)
        return self._compiled[fn]

    def _backward(
        self,
        active: list[Group],
        scaler: torch.amp.GradScaler | None,
        loss_fn: Callable[..., Terms],
        batch: tuple[Any, ...],
    ) -> tuple[list[str], Tensor]:
        """Accumulates the gradients of the mean over micro-batches; returns the terms' names and their means."""
        n = self.micro_batches
        parts = list(zip(*(b.chunk(n) for b in batch), strict=True)) if n > 1 else [batch]
        total: Tensor | None = None
        for i, part in enumerate(parts):
            if n > 1:
                for group in active:
                    for net in group.nets:
                        set_gradient_sync(net, i == n - 1)
            try:
                terms = self._evaluate(loss_fn, part)
                values = torch.stack(list(terms.values()))
                loss = values.sum() if n == 1 else values.sum() / n
                (loss if scaler is None else scaler.scale(loss)).backward()
            except RuntimeError as e:
                self._explain_double_backward(e, active)
                raise
            values = values.detach() if n == 1 else values.detach() / n
            total = values if total is None else total + values
        assert total is not None
        return list(terms), total

    def _evaluate(self, fn: Callable[..., T], part: tuple[Any, ...]) -> T:
        if self.autocast is None:
            return fn(*part)
        with torch.autocast(self.device.type, self.autocast):
            return fn(*part)

    def _explain_double_backward(self, error: RuntimeError, active: list[Group]) -> None:
        """torch's errors on differentiating a gradient of a sharded or compiled network do not say what to do."""
        if DOUBLE_BACKWARD.search(str(error)):
            names = ", ".join(group.name for group in active)
            raise ConfigError(
                f"a loss of {names} differentiates a gradient, which sharded or batch-synchronised networks cannot: "
                f"take it by torch.func.grad, and add the groups to {self.algorithm_name}.replicated"
            ) from error

    @staticmethod
    def _norms(active: list[Group], scaler: torch.amp.GradScaler | None) -> list[Tensor]:
        if scaler is not None:
            for group in active:
                scaler.unscale_(group.optimizer)
        return [group.gradient_norm() for group in active]

    def _step(self, active: list[Group], scaler: torch.amp.GradScaler | None, skip: Tensor | None) -> None:
        for group in active:
            group.lr.fill_(learning_rate(group.settings, self.images, self.total_images))
            if scaler is not None:
                scaler.step(group.optimizer)
            else:
                if skip is not None:
                    group.optimizer.found_inf = skip  # type: ignore[attr-defined]  # fused steps skip on the device
                group.optimizer.step()
            group.optimizer.zero_grad()
            if group.average is not None:
                group.follow()
        if scaler is not None:
            scaler.update()

    def settle(self) -> None:
        """The averaged weights become the weights, where they are kept."""
        for group in self.groups.values():
            group.settle()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the weights, for evaluation."""
        for group in self.groups.values():
            group.swap()
        try:
            yield
        finally:
            for group in self.groups.values():
                group.swap()

    def read(self, world: World) -> Metrics:
        """What was recorded since the last read, the same on every rank. Waits for the device."""
        metrics = read(self.records, world, overflow=self.scaled)
        metrics.values |= {f"lr/{name}": float(g.lr) for name, g in self.groups.items()}
        return metrics
