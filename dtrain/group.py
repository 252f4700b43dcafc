"""One parameter group: its learning rate, its optimizer, its gradient norm, its averaged weights."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.config import OptimizerConfig
from dtrain.nets.batchnorm import batch_norms


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


KINDS = {
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop,
}  # fmt: skip


def make_optimizer(settings: OptimizerConfig, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own optimizer; Adam in its fused form, which can skip a step without asking the host."""
    kind, lr, decay = _eager(KINDS[settings.name]), settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return kind(params, lr, momentum=settings.momentum, weight_decay=decay)
    if settings.name == "rmsprop":
        return kind(params, lr, eps=settings.eps, momentum=settings.momentum, weight_decay=decay)
    return kind(params, lr, betas=settings.betas, eps=settings.eps, weight_decay=decay, fused=True)


def _eager(kind: type[torch.optim.Optimizer]) -> Any:
    """torch's optimizer without its guards for torch.compile, the first of which loads the compiler: a second.

    Only losses are compiled here, never an optimizer.
    """
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    return type(kind.__name__, (kind,), {**bare, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _norm(grads: list[Tensor]) -> Tensor:
    # As torch.nn.utils.get_total_norm, without its sorting by device and dtype: a group has one of each.
    norms = torch._foreach_norm(grads)
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


class Group:
    """One parameter group: its networks, its optimizer, and the running average of its weights."""

    def __init__(self, name: str, nets: list[nn.Module], settings: OptimizerConfig) -> None:
        self.name, self.nets, self.settings = name, nets, settings
        self.params = [p for net in nets for p in net.parameters()]
        self.norms = [norm for net in nets for norm in batch_norms(net)]
        self.optimizer = make_optimizer(settings, self.params)
        # On the device, so that a step can be captured; set here, since the constructor would read it back. A GPU's
        # fused kernels take float32.
        device = self.params[0].device
        precise = torch.float64 if device.type == "cpu" else torch.float32
        self.lr = torch.tensor(settings.lr, dtype=precise, device=device)
        for options in self.optimizer.param_groups:
            options["lr"] = self.lr
        # Of the local shards: a sharded module cannot be copied, its parameters can.
        self.average = [p.detach().clone() for p in self.params] if settings.ema else None

    def freeze(self, frozen: bool) -> None:
        for p in self.params:
            p.requires_grad_(not frozen)

    def hold(self, held: bool) -> None:
        """Whether forwards leave the running statistics alone; they normalise by the batch's own all the same."""
        for norm in self.norms:
            norm.track_running_stats = not held

    def statistics(self) -> list[Tensor]:
        """The float running statistics."""
        return [b for norm in self.norms for b in norm.buffers() if b.is_floating_point()]

    def gradient_norm(self) -> Tensor:
        """The norm over all ranks, a scalar on the device; clips where configured."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = _norm(grads)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.settings.clip_norm, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the averaged weights one step towards the weights."""
        if self.average is not None and self.settings.ema is not None:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - self.settings.ema)

    @torch.no_grad()
    def restart_average(self) -> None:
        """The averaged weights begin anew at the weights."""
        for p, average in zip(self.params, self.average or [], strict=False):
            average.copy_(p)

    @torch.no_grad()
    def settle(self) -> None:
        """The averaged weights become the weights."""
        for p, average in zip(self.params, self.average or [], strict=False):
            p.copy_(average)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averaged weights."""
        for p, average in zip(self.params, self.average or [], strict=False):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)
