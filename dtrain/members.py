"""An updater over the members of a pack: a step of all of them at once, by vmap over stacked weights and buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from dtrain.alike import Each, of_member, opened, varying
from dtrain.config import ConfigError
from dtrain.models.base import Algorithm, LossFunction, Terms
from dtrain.nets.batchnorm import batch_norms
from dtrain.record import Record, Row
from dtrain.stack import Stack
from dtrain.update import Updater

T = TypeVar("T")


class _Call(nn.Module):
    """A call of any function of the algorithm, as the forward that functional_call asks for."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self.algorithm = algorithm

    def forward(self, fn: Callable[..., Any], *batch: Any) -> Any:
        return fn(*batch)


class PackedUpdater:
    """What Updater is to one algorithm: update(groups, loss_fn, *batch), update.value(…), update.watch(…).

    base: an algorithm of the members' architecture, whose `step` is called and whose own weights are not used.
    members, updaters: the algorithms, on their device, and their own updaters, which keep the records, and the state
    that is saved: from now on their tensors are rows of stacks that all members share, so that each can be evaluated,
    saved and restored as if it were alone. What a value returns is Each: a step passes it on. ConfigError where the
    members are of different structure, or a function of the algorithm cannot be vectorised.
    """

    def __init__(self, base: Algorithm, members: Sequence[Algorithm], updaters: Sequence[Updater]) -> None:
        self.base, self.members, self.updaters = base.train(), members, updaters
        self.active = list(range(len(members)))
        self.measure = True
        self._call = _Call(base)
        self._floats = varying(members)
        for path, name, value in self._floats:
            vars(base.get_submodule(path))[name] = value
        self._paths = {id(net): path for path, net in base.named_modules()}
        self.stacks = {name: Stack([u.groups[name] for u in updaters]) for name in base.groups}
        self._norms = {
            name: [norm for path in paths for norm in batch_norms(base.get_submodule(path))]
            for name, paths in base.groups.items()
        }
        for norm in batch_norms(base):  # those that no group owns are never moved
            norm.track_running_stats = False
        self._state = self._stacked()
        self._active: tuple[str, ...] = tuple(base.groups)
        self._tracking: tuple[str, ...] = ()
        self._tried: set[Callable[..., Any]] = set()

    def _stacked(self) -> dict[str, Tensor]:
        """algorithm.<name> -> the stack of every parameter and buffer; the members' buffers become its rows."""
        state: dict[str, Tensor] = {}
        for name, paths in self.base.groups.items():
            nets = [(path, self.base.get_submodule(path)) for path in paths]
            names = [f"{path}.{k}" for path, net in nets for k, _ in net.named_parameters()]
            state |= dict(zip(names, self.stacks[name].leaves, strict=True))
        rest = [dict(m.named_parameters()) for m in self.members]
        state |= {k: torch.stack([r[k].detach() for r in rest]) for k in rest[0].keys() - state.keys()}
        buffers = [dict(m.named_buffers()) for m in self.members]
        for k in buffers[0]:
            state[k] = torch.stack([b[k] for b in buffers])
            for e, own in enumerate(buffers):
                own[k].data = state[k][e]
        return {f"algorithm.{k}": v for k, v in state.items()}

    def begin(self, images: int, total_images: int, measure: bool) -> None:
        """Before a step: images seen, of how many in all, and whether any member records its norms."""
        self.measure = measure
        for stack in self.stacks.values():
            stack.set_rates(images, total_images)

    def __call__(self, groups: str | tuple[str, ...], loss_fn: LossFunction, *batch: Any) -> None:
        names = (groups,) if isinstance(groups, str) else groups
        stacks = self._activate(names)
        terms: list[str] = []

        def stacked(*batch: Any) -> Tensor:
            found = loss_fn(*batch)
            terms[:] = found
            return torch.stack(list(found.values()))

        values = self._vectorised(stacked, loss_fn, batch)
        leaves = [leaf for stack in stacks for leaf in stack.leaves]
        found = torch.autograd.grad(values, leaves, torch.ones_like(values), allow_unused=True)
        values = values.detach()
        for stack in stacks:
            gradient = stack.gradient(found[: len(stack.leaves)], loss_fn)
            found = found[len(stack.leaves) :]
            if self.measure or stack.clips:
                norms = stack.norms(gradient)
                values = torch.cat([values, norms.to(values.dtype)[:, None]], 1)
            stack.step(gradient)
        self._record("all" if names == tuple(self.stacks) else "+".join(names), terms, list(names), values)

    def _record(self, label: str, terms: list[str], names: list[str], values: Tensor) -> None:
        rows = values.unbind(0)
        for e in self.active:
            updater = self.updaters[e]
            if label not in updater.records:
                updater.records[label] = Record(list(terms), names)
            updater.calls += 1
            updater.records[label].rows.append(Row(updater.step, updater.calls, rows[e]))

    @torch.no_grad()
    def value(self, fn: Callable[..., T], *batch: Any) -> T:
        """fn(*batch) of every member without gradient, its tensors as Each; it moves nothing."""
        self._track(())
        found: T = tree_map(Each, self._vectorised(fn, fn, batch))
        return found

    def watch(self, name: str, fn: Callable[..., Terms], *batch: Any) -> None:
        """In measured steps: every member's own updater watches its own networks, one after the other.

        Not vectorised: it is rare, and may ask for gradients as vmap does not let it.
        """
        for e in self.active:
            if self.updaters[e].measure:
                self.updaters[e].watch(name, self._own(fn, e), *(of_member(b, e) for b in batch))

    def release(self, e: int) -> None:
        """A member leaves: what is its own stays as it is, and its rows, which go on, are nobody's."""
        self.active.remove(e)
        for tensor in (*self.members[e].parameters(), *self.members[e].buffers()):
            tensor.data = tensor.data.clone()
        for stack in self.stacks.values():
            stack.release(e)

    def _own(self, fn: Callable[..., T], e: int) -> Callable[..., T]:
        """A method of the base, or of a network in it, as the member's."""
        path = self._paths[id(fn.__self__)]  # type: ignore[attr-defined]
        own: Callable[..., T] = getattr(self.members[e].get_submodule(path), fn.__name__)
        return own

    def _activate(self, names: tuple[str, ...]) -> list[Stack]:
        """Gradients, and moving running statistics, only for the named groups."""
        if names != self._active:
            for name, stack in self.stacks.items():
                for leaf in stack.leaves:
                    leaf.requires_grad_(name in names)
            self._active = names
        self._track(names)
        return [self.stacks[name] for name in names]

    def _track(self, names: tuple[str, ...]) -> None:
        if names != self._tracking:
            for name, norms in self._norms.items():
                for norm in norms:
                    norm.track_running_stats = name in names
            self._tracking = names

    def _vectorised(self, call: Callable[..., Any], fn: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
        """call(*batch) of every member: tensors [E, …]. fn: the function of the algorithm that it calls."""
        slots: list[Tensor] = []
        fill = opened(batch, slots)
        fill_floats = [(vars(self.base.get_submodule(p)), k, v, opened(v, slots)) for p, k, v in self._floats]

        def one(state: dict[str, Tensor], filled: list[Tensor]) -> Any:
            for own, name, _, floats in fill_floats:
                own[name] = floats(filled)
            return functional_call(self._call, state, (call, *fill(filled)))

        try:
            return vmap(one)(self._state, slots)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, NotImplementedError) as e:
            if fn in self._tried:
                raise
            said = str(e).strip().splitlines() or [""]
            raise ConfigError(
                f"{type(self.base).__name__}: {fn.__qualname__} cannot be packed, for vmap says: {said[0]}; "
                "train its runs alone"
            ) from e
        finally:
            self._tried.add(fn)
            for own, name, value, _ in fill_floats:
                own[name] = value
