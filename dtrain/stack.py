"""One parameter group of all members of a pack: weights and optimizer state as matrices, and Adam on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dtrain.config import ConfigError, OptimizerConfig
from dtrain.group import Group, learning_rate


class Stack:
    """The groups of E members of P parameters each: weights, both moments, averages and gradients are [E, P].

    leaves: the weights by parameter, [E, …], which losses are differentiated with respect to. From its construction
    on the groups' own parameters, optimizer states, lr and averages are rows of the stack.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.name, self.groups = groups[0].name, groups
        self.shapes = [p.shape for p in groups[0].params]
        self.weights = torch.stack([_flat(g.params) for g in groups])
        self.leaves = [view.detach().requires_grad_() for view in self._views(self.weights)]
        for e, group in enumerate(groups):
            for p, leaf in zip(group.params, self.leaves, strict=True):
                p.data = leaf.detach()[e]
        self._adopt_state()
        self.average: Tensor | None = None
        if all(g.average is not None for g in groups):
            self.average = torch.stack([_flat(g.average or []) for g in groups])
            for e, group in enumerate(groups):
                group.average = [view[e] for view in self._views(self.average)]
        self._adopt_settings()

    @property
    def clips(self) -> bool:
        """Whether any member clips."""
        return self.clip is not None

    def _views(self, matrix: Tensor) -> list[Tensor]:
        """[E, P] by parameter: [E, …] each, shared storage."""
        parts = matrix.split([shape.numel() for shape in self.shapes], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _adopt_state(self) -> None:
        """Both moments and the number of steps of each member, 0 before the first one."""
        self.moments = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.steps = torch.zeros(len(self.groups), device=self.weights.device)
        views = [self._views(m) for m in self.moments]
        for e, group in enumerate(self.groups):
            states = [group.optimizer.state.get(p) or {} for p in group.params]
            counts = {float(s["step"]) if s else 0.0 for s in states}
            if len(counts) > 1:
                raise ConfigError(
                    f"group {self.name}: its parameters have taken {sorted(counts)} steps; train it alone"
                )
            self.steps[e] = counts.pop()
            for i, (p, state) in enumerate(zip(group.params, states, strict=True)):
                own = {"step": self.steps[e], "exp_avg": views[0][i][e], "exp_avg_sq": views[1][i][e]}
                for key in ("exp_avg", "exp_avg_sq") if state else ():
                    own[key].copy_(state[key])
                group.optimizer.state[p] = own

    def _adopt_settings(self) -> None:
        """[E, 1] of each number of the optimizers; None for a clip or a decay that no member has."""
        settings: list[OptimizerConfig] = [g.settings for g in self.groups]
        self.decoupled = settings[0].name == "adamw"
        self.betas = tuple(self._column([s.betas[i] for s in settings]) for i in (0, 1))
        self.eps = self._column([s.eps for s in settings])
        decays = [s.weight_decay for s in settings]
        self.decay = self._column(decays) if any(decays) else None
        limits = [float("inf") if s.clip_norm is None else s.clip_norm for s in settings]
        self.clip = self._column(limits) if any(s.clip_norm is not None for s in settings) else None
        self.rest = self._column([1 - (s.ema or 0.0) for s in settings])
        self._distinct = list(dict.fromkeys(settings))
        self._which = [self._distinct.index(s) for s in settings]
        self._rates: list[float] = []
        self.lr = self._column([float(g.lr) for g in self.groups]).to(self.groups[0].lr.dtype)
        for e, group in enumerate(self.groups):
            group.lr = self.lr[e, 0]
            for options in group.optimizer.param_groups:
                options["lr"] = group.lr

    def _column(self, numbers: Sequence[float]) -> Tensor:
        """[E, 1], in float64: what the optimizers' own arithmetic on numbers has."""
        return torch.tensor(numbers, dtype=torch.float64, device=self.weights.device)[:, None]

    def set_rates(self, images: int, total_images: int) -> None:
        """The lr of every member after so many images."""
        rates = [learning_rate(s, images, total_images) for s in self._distinct]
        if rates != self._rates:
            self._rates = rates
            self.lr.copy_(self._column([rates[i] for i in self._which]))

    def gradient(self, found: Sequence[Tensor | None], loss_fn: Callable[..., Any]) -> Tensor:
        """[E, P] of the gradients by parameter. ConfigError where a loss does not reach one: Adam would count on."""
        for leaf, gradient in zip(self.leaves, found, strict=True):
            if gradient is None:
                raise ConfigError(
                    f"{loss_fn.__qualname__} does not depend on all parameters of group {self.name} (one of shape "
                    f"{list(leaf.shape[1:])}), which a pack cannot train; train its runs alone"
                )
        return torch.cat([g.reshape(len(self.groups), -1) for g in found if g is not None], 1)

    def norms(self, gradient: Tensor) -> Tensor:
        """[E], each member's own; clips where configured."""
        norms = torch.linalg.vector_norm(gradient, dim=1)
        if self.clip is not None:  # as torch.nn.utils.clip_grads_with_norm_
            gradient.mul_((self.clip / (norms[:, None] + 1e-6)).clamp_max(1.0).to(gradient.dtype))
        return norms

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Adam's step (Kingma & Ba, 2015, Algorithm 1; AdamW's decay by lr), which overwrites the gradient.

        m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- w - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
        """
        dtype, lr, (m, v), (beta1, beta2) = gradient.dtype, self.lr.double(), self.moments, self.betas
        self.steps += 1
        steps = self.steps.double()[:, None]
        if self.decay is not None and self.decoupled:
            self.weights.mul_((1 - lr * self.decay).to(dtype))
        elif self.decay is not None:
            gradient.addcmul_(self.weights, self.decay.to(dtype))
        m.lerp_(gradient, (1 - beta1).to(dtype))
        v.mul_(beta2.to(dtype)).add_(gradient.square_().mul_((1 - beta2).to(dtype)))
        divisor = torch.sqrt(v, out=gradient).div_((1 - beta2**steps).sqrt().to(dtype)).add_(self.eps.to(dtype))
        self.weights.addcdiv_(m * (-lr / (1 - beta1**steps)).to(dtype), divisor)
        if self.average is not None:
            self.average.lerp_(self.weights, self.rest.to(dtype))

    def release(self, e: int) -> None:
        """The member's optimizer state and averages become its own; its parameters are the algorithm's to free."""
        group = self.groups[e]
        for p in group.params:
            state = group.optimizer.state[p]
            state |= {k: t.clone() for k, t in state.items()}
        group.average = [t.clone() for t in group.average] if group.average is not None else None


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """[P] of the parameters of one member."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])
