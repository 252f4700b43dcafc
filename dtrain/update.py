"""The Updater: one optimizer step of named parameter groups, the same on any number of processes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.config import ConfigError, OptimConfig, OptimizerConfig, TrainerConfig
from dtrain.distributed import World, set_gradient_sync
from dtrain.models.base import Algorithm, LossFunction, Terms

# What FSDP2 (freed storage), torch.compile and SyncBatchNorm say to a double backward.
DOUBLE_BACKWARD = re.compile("setStorage.*storage of size 0|double backward|once_differentiable", re.DOTALL)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(settings: OptimizerConfig, images: int, total_images: int) -> float:
    """The lr after `images` images: linear warm-up times a constant, cosine or step decay."""
    decay = settings.decay_images or total_images
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(images / decay, 1.0)))
    elif settings.schedule == "step":
        factor = settings.decay_factor ** (images // decay)
    else:
        factor = 1.0
    warmup = min(1.0, images / settings.warmup_images) if settings.warmup_images else 1.0
    return settings.lr * factor * warmup


def make_optimizer(settings: OptimizerConfig, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own optimizer; Adam in its fused form, which can skip a step without asking the host."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(params, lr, momentum=settings.momentum, weight_decay=decay)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(params, lr, eps=settings.eps, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(params, lr, betas=settings.betas, eps=settings.eps, weight_decay=decay, fused=True)


class Group:
    """One parameter group: its networks, its optimizer, and the running average of its weights."""

    def __init__(self, name: str, nets: list[nn.Module], settings: OptimizerConfig) -> None:
        self.name, self.nets, self.settings = name, nets, settings
        self.params = [p for net in nets for p in net.parameters()]
        self.optimizer = make_optimizer(settings, self.params)
        # Of the local shards: a sharded module cannot be copied, its parameters can.
        self.average = [p.detach().clone() for p in self.params] if settings.ema else None

    def freeze(self, frozen: bool) -> None:
        for p in self.params:
            p.requires_grad_(not frozen)

    def gradient_norm(self) -> Tensor:
        """The norm over all ranks, a scalar on the device; clips where configured."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.settings.clip_norm, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the averaged weights one step towards the weights."""
        if self.average is not None and self.settings.ema is not None:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - self.settings.ema)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averaged weights."""
        for p, average in zip(self.params, self.average or [], strict=False):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)


class Record:
    """Sums of one update's loss terms and gradient norms since they were last read, kept on the device."""

    def __init__(self, terms: list[str], groups: list[str]) -> None:
        self.terms, self.groups = terms, groups
        self.reset()

    def reset(self) -> None:
        self.count, self.sum, self.skipped, self.bad = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, terms: Terms, norms: list[Tensor], skip: Tensor | None) -> None:
        """One step's values. skip: a 0/1 scalar where steps may be skipped; their values are counted, not summed."""
        values = torch.stack([*terms.values(), *norms])
        if skip is not None:
            bad, self.skipped = ~values.isfinite() & (skip > 0), self.skipped + skip
            self.bad = self.bad + bad
            values = values.masked_fill(skip > 0, 0.0)
        self.sum = values if not self.count else self.sum + values
        self.count += 1

    def means(self, world: World) -> tuple[Tensor, float, list[str]]:
        """Mean values over ranks and unskipped steps, the number of skipped steps, what was not finite in them."""
        names = [f"loss term {t!r}" for t in self.terms] + [f"gradient of group {g!r}" for g in self.groups]
        packed = torch.cat([self.sum, self.skipped.view(1), self.bad.expand(len(names))])
        sums, skipped, bad = world.mean(packed).split([len(names), 1, len(names)])
        culprits = [n for n, b in zip(names, bad.tolist(), strict=True) if b]
        return sums / (self.count - skipped).clamp_min(1), float(skipped), culprits


class Updater:
    """Called by an algorithm's step: update(groups, loss_fn, *batch).

    Unfreezes only these groups; per micro-batch: autocast, loss, backward (gradients averaged over ranks on the
    last); clips, sets the lr of the images seen, steps, zeroes, follows the average; records the terms. Nothing in
    it waits for the device. Raises ConfigError for a group the algorithm does not have.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optim: OptimConfig,
        trainer: TrainerConfig,
        world: World,
        total_images: int,
    ) -> None:
        unknown = set(optim.groups) - set(algorithm.groups)
        if unknown:
            raise ConfigError(f"optim.groups.{min(unknown)}: this model's groups are {', '.join(algorithm.groups)}")
        for name in algorithm.groups:
            if trainer.on_nonfinite == "skip" and optim.of(name).name not in ("adam", "adamw"):
                raise ConfigError(
                    f"trainer.on_nonfinite=skip needs optim.*.name=adam or adamw, group {name} has {optim.of(name).name}"
                )
        self.groups = {
            name: Group(name, [algorithm.get_submodule(p) for p in paths], optim.of(name))
            for name, paths in algorithm.groups.items()
        }
        self.micro_batches, self.compile = trainer.micro_batches, trainer.compile
        self.algorithm_name = type(algorithm).__name__
        self.double_backward = algorithm.double_backward
        self.device, self.total_images = world.device, total_images
        self.scaled = trainer.precision == "fp16"
        self.autocast = AUTOCAST.get(trainer.precision)
        self.images = 0  # seen by the whole job before this step
        self.skip = trainer.on_nonfinite == "skip" and not self.scaled
        self.buffers = [b for b in algorithm.buffers() if b.is_floating_point()]
        self.records: dict[str, Record] = {}
        self.skipped: list[tuple[int, str]] = []  # (steps, what was not finite), filled by read
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self._active: tuple[str, ...] = tuple(self.groups)
        self._compiled: dict[Any, Callable[..., Terms]] = {}

    def __call__(self, groups: str | tuple[str, ...], loss_fn: LossFunction, *batch: Any) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        active = self.activate(names)
        label = "all" if names == tuple(self.groups) else "+".join(names)
        if self.scaled and label not in self.scalers:
            self.scalers[label] = torch.amp.GradScaler(self.device.type)
        scaler = self.scalers.get(label)
        before = [b.clone() for b in self.buffers] if self.skip else []
        terms = self._backward(active, scaler, self._callable(names, loss_fn), batch)
        norms = self._norms(active, scaler)
        skip = None
        if self.skip:  # gradients are averaged over ranks, so every rank finds the same
            skip = 1.0 - torch.stack(norms).sum().isfinite().float()
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(torch.where(skip > 0, old, buffer))
        self._step(active, scaler, skip)
        if label not in self.records:
            self.records[label] = Record(list(terms), list(names))
        self.records[label].add(terms, norms, skip)

    def activate(self, names: tuple[str, ...]) -> list[Group]:
        """Leaves requires_grad only on the named groups."""
        if names != self._active:
            for name, group in self.groups.items():
                group.freeze(name not in names)
            self._active = names
        return [self.groups[name] for name in names]

    def unfreeze(self) -> None:
        """All groups trainable: what reading or writing the optimizers' state needs."""
        self.activate(tuple(self.groups))

    def _callable(self, names: tuple[str, ...], loss_fn: LossFunction) -> Callable[..., Terms]:
        if not self.compile or self.double_backward.intersection(names):
            return loss_fn
        key = getattr(loss_fn, "__func__", loss_fn)
        return self._compiled.setdefault(key, torch.compile(loss_fn))

    def _backward(
        self,
        active: list[Group],
        scaler: torch.amp.GradScaler | None,
        loss_fn: LossFunction,
        batch: tuple[Any, ...],
    ) -> Terms:
        """Accumulates the gradients of the mean over micro-batches; returns the mean terms."""
        n = self.micro_batches
        parts = list(zip(*(b.chunk(n) for b in batch), strict=True)) if n > 1 else [batch]
        total: Terms = {}
        for i, part in enumerate(parts):
            if n > 1:
                for group in active:
                    for net in group.nets:
                        set_gradient_sync(net, i == n - 1)
            with self._double_backward_explained(active):
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    terms = loss_fn(*part)
                loss = torch.stack(list(terms.values())).sum() / n
                (loss if scaler is None else scaler.scale(loss)).backward()
            total = {k: t.detach() / n + total[k] if total else t.detach() / n for k, t in terms.items()}
        return total

    @contextmanager
    def _double_backward_explained(self, active: list[Group]) -> Iterator[None]:
        """torch's errors on differentiating a gradient of a sharded or compiled network do not say what to do."""
        try:
            yield
        except RuntimeError as e:
            if not DOUBLE_BACKWARD.search(str(e)):
                raise
            names = ", ".join(group.name for group in active)
            raise ConfigError(
                f"a loss of {names} differentiates a gradient, which sharded, compiled or batch-synchronised networks "
                f"cannot: add its groups to {self.algorithm_name}.double_backward, and they stay replicated and eager"
            ) from e

    @staticmethod
    def _norms(active: list[Group], scaler: torch.amp.GradScaler | None) -> list[Tensor]:
        if scaler is not None:
            for group in active:
                scaler.unscale_(group.optimizer)
        return [group.gradient_norm() for group in active]

    def _step(self, active: list[Group], scaler: torch.amp.GradScaler | None, skip: Tensor | None) -> None:
        for group in active:
            for settings in group.optimizer.param_groups:
                settings["lr"] = learning_rate(group.settings, self.images, self.total_images)
            if scaler is not None:
                scaler.step(group.optimizer)
            else:
                if skip is not None:
                    group.optimizer.found_inf = skip  # type: ignore[attr-defined]  # fused steps skip on the device
                group.optimizer.step()
            group.optimizer.zero_grad()
            group.follow()
        if scaler is not None:
            scaler.update()

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

    def read(self, world: World) -> dict[str, float]:
        """Means over ranks and over the steps since the last read: loss/<update>/<term> and so on.

        Waits for the device.
        """
        values: dict[str, float] = {}
        for label, record in self.records.items():
            if record.count:
                means, skipped, culprits = record.means(world)
                mean = means.tolist()
                if skipped:
                    self.skipped.append((int(skipped), f"{', '.join(culprits)} of update {label!r}"))
                terms = dict(zip(record.terms, mean, strict=False))
                values |= {f"loss/{label}/{k}": v for k, v in terms.items()}
                values[f"loss/{label}"] = sum(terms.values())
                norms = mean[len(record.terms) :]
                values |= {f"grad_norm/{label}/{g}": v for g, v in zip(record.groups, norms, strict=True)}
                record.reset()
        values |= {f"lr/{name}": float(g.optimizer.param_groups[0]["lr"]) for name, g in self.groups.items()}
        return values
