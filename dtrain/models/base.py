"""The contract between an algorithm and everything mechanical around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.noise import Noise

Terms = dict[str, Tensor]
LossFunction = Callable[..., Terms]
T = TypeVar("T")


class Update(Protocol):
    """The two verbs of a step. Functions are bound methods: whatever varies is an argument."""

    def __call__(self, groups: str | tuple[str, ...], loss_fn: LossFunction, *batch: Any) -> None:
        """One optimizer step of the named groups on the sum of the terms that loss_fn(*batch) returns.

        It moves the weights and running statistics of these groups, and nothing else.
        """

    def value(self, fn: Callable[..., T], *batch: Any) -> T:
        """fn(*batch) without gradient, in the run's precision; it moves nothing."""


class Algorithm(nn.Module):
    """Networks, a partition of them into parameter groups, and a step.

    groups: group name -> the networks (attribute paths) it owns; every network is in one group, or in none if
        nothing ever trains it.
    value_range: what the images are scaled to. levels: depth of the latent hierarchy.
    prior_scale: standard deviation of the deepest code under its prior.
    interpolated: the level whose codes pictures interpolate; None for the deepest.
    batches_per_step: how many batches a step takes from the stream.
    batch_coupled: the loss of a batch is not the mean of its samples' losses (MMD), so it cannot be
        micro-batched, and needs `gather` to be the same on any number of processes.
    double_backward: groups whose loss differentiates a gradient; they stay replicated and eager.
    """

    groups: Mapping[str, tuple[str, ...]]
    value_range: tuple[float, float] = (0.0, 1.0)
    levels: int = 1
    prior_scale: float = 1.0
    interpolated: int | None = None
    batches_per_step: int = 1
    batch_coupled: bool = False
    double_backward: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.gather: Callable[[Tensor], Tensor] = lambda rows: rows
        """Rows of all processes, with gradient: [B, ...] -> [world * B, ...]. The trainer sets it."""

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """One training step, as the paper's algorithm prints it."""
        raise NotImplementedError

    def summary(self) -> str:
        """The sizes that a person wants to see when a run starts; "" for none."""
        return ""

    def validate(self, batch: Batch) -> Terms:
        """The held-out terms of one batch, whose sum is the objective; {} where there is none."""
        return {}

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        """Images [B, C, H, W] to the code of a level, [B, ...]; the mean where the encoder is stochastic."""
        raise NotImplementedError

    def encode_levels(self, x: Tensor) -> Iterator[Tensor]:
        """The codes of level 1, 2, … up to the deepest, one after the other."""
        return (self.encode(x, level) for level in range(1, self.levels + 1))

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        """Codes of a level to images, by means."""
        raise NotImplementedError

    def generators(self) -> Mapping[str, Callable[[Noise], Tensor]]:
        """The generative models by name ("" where there is but one): noise of B rows -> B codes of level 1."""
        raise NotImplementedError

    def sample(self, noise: Noise) -> Tensor:
        """One image per row of the noise, from the first generative model."""
        return self.decode(next(iter(self.generators().values()))(noise))

    def reconstruct(self, x: Tensor, level: int = 1) -> Tensor:
        """Encode up to a level and decode down again."""
        return self.decode(self.encode(x, level), level)

    def reconstructions(self, x: Tensor) -> dict[str, Tensor]:
        """Every reconstruction of x that is worth a picture, by its caption; the deepest first."""
        levels = reversed(range(1, self.levels + 1))
        return {f"encoded up to level {i}, decoded down": self.reconstruct(x, i) for i in levels}
