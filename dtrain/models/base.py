"""The contract between an algorithm and everything mechanical around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.noise import Noise

if TYPE_CHECKING:
    from dtrain.data.build import Loader
    from dtrain.world import World

Terms = dict[str, Tensor]
LossFunction = Callable[..., Terms]
Prior = Callable[[Noise], Tensor]
T = TypeVar("T")

# Kinds of constructor arguments: their annotations are the configuration's types and ranges.
Count = Annotated[int, Field(ge=0)]
Dimension = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class DataFacts:
    """What an algorithm knows of its data before it sees any.

    image_shape: (C, H, W). classes: how many values the labels have. attributes: their names. embedding: dimensions
    of the embeddings. images: of the training split. None or empty where the data has none.
    """

    image_shape: tuple[int, int, int]
    classes: int | None = None
    attributes: tuple[str, ...] = ()
    embedding: int | None = None
    images: int | None = None


class Update(Protocol):
    """The verbs of a step. Functions are bound methods: whatever varies is an argument."""

    def __call__(self, groups: str | tuple[str, ...], loss_fn: LossFunction, *batch: Any) -> None:
        """One optimizer step of the named groups on the sum of the terms that loss_fn(*batch) returns.

        It moves the weights and running statistics of these groups, and nothing else.
        """

    def value(self, fn: Callable[..., T], *batch: Any) -> T:
        """fn(*batch) without gradient, in the run's precision; it moves nothing."""

    def watch(self, name: str, fn: Callable[..., Terms], *batch: Any) -> None:
        """In logged steps alone: fn(*batch) goes to the log as watch/<name>/<term>; it trains and moves nothing.

        All networks are frozen; fn may differentiate with respect to what they are given.
        """


class Source(Protocol):
    """What a stage trains on in place of images: one global stream, a function of position and never of rank."""

    def batches(self, start: int) -> Iterator[Any]:
        """Endless global batches from the row at position `start` on: each a tensor, a Batch, or a tuple of such.

        The trainer hands every rank its rows.
        """

    def close(self) -> None:
        """Frees what an abandoned iterator would hold."""


@dataclass(frozen=True)
class Site:
    """What a stage's source and an evaluation may use.

    folder: the run's. train: the training images, this rank's rows. batch_size: of all ranks together. poll: to be
    called now and then in long work; raises Interrupted once all ranks agree to stop. digest: of the weights of the
    named groups, the same on every rank; called on all of them.
    """

    folder: Path
    train: Loader
    seed: int
    batch_size: int
    world: World
    poll: Callable[[], None]
    digest: Callable[..., str]


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own length, schedules, patience and best weights.

    batches_per_step: how many batches a step takes, exactly: epochs, speeds and resuming count with it.
    source: makes what the steps get in place of training images, once the stage before has ended.
    trained: its networks come trained, from another run: it is skipped, whatever its length.
    """

    name: str
    step: Callable[[Iterator[Any], Update], None]
    batches_per_step: int = 1
    source: Callable[[Site], Source] | None = None
    trained: bool = False


class Algorithm(nn.Module):
    """Networks, a partition of them into parameter groups, and a step. Built as Class(data: DataFacts, *, …).

    groups: group name -> the networks (attribute paths) it owns; every network is in one group, or in none if
        nothing ever trains it.
    without: groups that the arguments have left out, for which there may be optimizer settings all the same.
    replicated: groups whose loss differentiates a gradient (by torch.func.grad); FSDP does not shard them.
    condition: what samples are conditioned on, if on anything.
    value_range: what the images are scaled to. levels: depth of the latent hierarchy; 0 where samples are no images.
    batch_coupled: the loss of a batch is not the mean of its samples' losses (MMD), so it cannot be
        micro-batched, and needs `gather` to be the same on any number of processes.
    batch_multiple: trainer.batch_size must be a multiple of it.
    pretrained: group -> a run folder, or a checkpoint in one, whose networks of the same names it starts from.
    """

    groups: Mapping[str, tuple[str, ...]]
    without: frozenset[str] = frozenset()
    replicated: frozenset[str] = frozenset()
    condition: Literal["labels", "embeddings"] | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    levels: int = 1
    batch_coupled: bool = False
    batch_multiple: int = 1
    pretrained: Mapping[str, Path] = {}

    def __init__(self) -> None:
        super().__init__()
        self.gather: Callable[[Tensor], Tensor] = lambda rows: rows
        """Rows of all processes, with gradient: [B, ...] -> [world * B, ...]. The trainer sets it."""

    def stages(self) -> tuple[Stage, ...]:
        """The parts of the training, one after the other."""
        return (Stage("train", self.step),)

    def step(self, batches: Iterator[Batch], update: Update) -> None:
        """One training step, as the paper's algorithm prints it."""
        raise NotImplementedError

    def summary(self) -> str:
        """The sizes that a person wants to see when a run starts; "" for none."""
        return ""

    def validate(self, batch: Batch) -> Terms:
        """The held-out terms of one batch, whose sum is the objective; {} where there is none."""
        return {}

    def critic_logits(self, x: Tensor) -> Tensor | None:
        """What the critic of images says, high where they look real: [B]; None where there is no such critic."""
        return None

    def encode(self, x: Tensor, level: int = 1) -> Tensor:
        """Images [B, C, H, W] to the code of a level, [B, ...]; the mean where the encoder is stochastic."""
        raise NotImplementedError

    def posteriors(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Mean and variance of the codes of level 1, 2, … up to the deepest; None of a deterministic encoder."""
        return ((self.encode(x, level), None) for level in range(1, self.levels + 1))

    def decode(self, z: Tensor, level: int = 1) -> Tensor:
        """Codes of a level to images, by means."""
        raise NotImplementedError

    def priors(self, condition: Tensor | None = None) -> Mapping[str, Prior]:
        """The generative models by name: noise of B rows -> B codes of level 1; {} where the algorithm has none.

        condition: [B] labels or [B, E] embeddings, where the algorithm has a condition.
        """
        raise NotImplementedError

    def chain(self, deepest: Noise, noise: Noise) -> Tensor | None:
        """Codes of level 1 drawn down a chain of stochastic decoders, where there is one: [B, ...].

        deepest: where z_N comes from. noise: where all that the decoders add comes from.
        """
        return None

    def grid(self, side: int) -> Tensor | None:
        """A square of side x side codes of the deepest level that is worth a picture, row by row, if there is one."""
        return None

    def learned_images(self) -> Tensor | None:
        """Images that are weights themselves, worth a picture, if there are any: [N, C, H, W]."""
        return None

    def sample(self, noise: Noise, condition: Tensor | None = None) -> Tensor:
        """One image per row of the noise, from the first generative model. ValueError where there is none."""
        for prior in self.priors(condition).values():
            return self.decode(prior(noise))
        raise ValueError(f"{type(self).__name__} has no generative model of its own to draw samples from")

    def reconstruct(self, x: Tensor, level: int = 1) -> Tensor:
        """Encode up to a level and decode down again."""
        return self.decode(self.encode(x, level), level)

    def reconstructions(self, x: Tensor) -> dict[str, Tensor]:
        """Every reconstruction of x by its name: from the code of each level, decoded down."""
        return {f"level{i}": self.decode(z, i) for i, (z, _) in enumerate(self.posteriors(x), start=1)}
