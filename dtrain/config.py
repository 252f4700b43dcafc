"""The typed configuration, checked by pydantic before anything heavy starts.

A wrong key, type or value becomes a ConfigError whose message names the key, the value, and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from dtrain.wording import problems

CONFIGS = Path(__file__).resolve().parent / "configs"  # a link in a checkout, a folder in a wheel and a snapshot
LONGEST_NAME = 200  # bytes of a run's or a sweep's name: of the 255 of a file system, some are for what follows it
LONGEST_TEXT = 500  # characters of a sentence: the encoder reads little more

M = TypeVar("M", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
HeldOut = Literal["valid", "test"]  # splits
Length = Positive | dict[str, Annotated[int, Field(ge=0)]]  # of a run, or of each of its stages


class ConfigError(Exception):
    """The configuration cannot be run; the message says which key, and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def name_error(name: str) -> str | None:
    """Why a folder cannot have this name, or None."""
    size = len(name.encode(errors="replace"))
    if not name.strip():
        return "is empty; a shell variable that is not set? Leave the key out for the default"
    if not name.isprintable() or "/" in name or name in (".", ".."):
        return "is the name of one folder: it may not hold / or control codes, nor be . or .."
    return f"has {size} bytes; a name has at most {LONGEST_NAME}" if size > LONGEST_NAME else None


def _named(name: str) -> str:
    if error := name_error(name):
        raise PydanticCustomError("name", "{why}", {"why": error})
    return name


def _given(path: Any) -> Any:
    if path == "":
        raise PydanticCustomError("path", "is empty; a shell variable that is not set? The present folder is .")
    return path


class RunConfig(_Section):
    name: Annotated[str, AfterValidator(_named)] | None = None
    root: Annotated[Path, BeforeValidator(_given)] = Path("runs")
    dir: Annotated[Path | None, BeforeValidator(_given)] = None
    extend: bool = False
    pause_at: Annotated[float | None, Field(gt=0, lt=1)] = None
    report: bool = True


class InitConfig(_Section):
    """run: `init.from`, the run or the checkpoint to start from. groups: [] for all that fit."""

    model_config = ConfigDict(serialize_by_alias=True)
    run: Annotated[Path | None, BeforeValidator(_given)] = Field(None, alias="from")
    groups: list[str] = []


class DataConfig(_Section):
    name: str
    path: Path
    train: str
    valid: str
    test: str
    flip: bool
    image_shape: tuple[Positive, Positive, Positive]
    prepare: str


class OptimizerConfig(_Section):
    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_images: Annotated[int, Field(ge=0)] = 0
    decay_images: Positive | None = None
    decay_factor: Annotated[float, Field(gt=0)] = 0.1


class OptimConfig(_Section):
    default: OptimizerConfig
    groups: dict[str, dict[str, Any]] = {}

    def of(self, group: str) -> OptimizerConfig:
        """The settings of one parameter group: the default with the group's own on top."""
        merged = self.default.model_dump() | self.groups.get(group, {})
        return checked(OptimizerConfig, merged, f"optim.groups.{group}")


class CheckpointConfig(_Section):
    every: Positive
    keep: Positive
    milestones: Positive | None
    best: str | dict[str, str] | None
    asynchronous: bool


class TrainerConfig(_Section):
    batch_size: Positive
    max_steps: Length | None
    max_epochs: Length | None
    micro_batches: Positive
    strategy: Literal["ddp", "fsdp"]
    shard_size: Positive | None
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    sync_batchnorm: bool
    compile: bool
    deterministic: bool = False
    activation_checkpointing: bool
    channels_last: bool
    device: Literal["auto", "cpu", "cuda"]
    log_every: Positive
    evaluate_every: Positive | Literal["epoch"] | None
    patience: Positive | dict[str, Positive] | None
    on_nonfinite: Literal["raise", "skip", "rollback"]
    nonfinite_limit: Positive
    checkpoint: CheckpointConfig
    timeout: Annotated[float, Field(gt=0)]

    @property
    def length(self) -> tuple[str, int | dict[str, int]]:
        """The key of the length, and its value. ConfigError unless just one is set."""
        given = {k: v for k in ("max_steps", "max_epochs") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            said = " and ".join(f"trainer.{k}={v}" for k, v in given.items()) or "trainer: no length"
            raise ConfigError(f"{said}: set one of trainer.max_steps and trainer.max_epochs, and the other to null")
        return next(iter(given.items()))

    def epoch(self, images: int, batches_per_step: int) -> int:
        """The steps of an epoch of a stage, on a training split of so many images."""
        return -(-images // (self.batch_size * batches_per_step))

    def evaluates(self, step: int, images: int, batches_per_step: int) -> bool:
        """Whether an evaluation is due after so many steps of a stage, on a training split of so many images."""
        every = self.evaluate_every
        if every == "epoch":
            every = self.epoch(images, batches_per_step)
        return every is not None and step % every == 0

    def check_world(self, world: int) -> None:
        """ConfigError unless the settings fit together, and the batch can be divided on `world` processes."""
        parts = world * self.micro_batches
        if self.batch_size % parts:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} is the batch of all processes together and must be a multiple "
                f"of processes x trainer.micro_batches = {world} x {self.micro_batches} = {parts}"
            )
        if self.shard_size and world % self.shard_size:
            raise ConfigError(f"trainer.shard_size={self.shard_size} must divide the {world} processes")
        if self.channels_last and self.strategy == "fsdp" and world > 1:
            raise ConfigError("trainer.channels_last=true: FSDP shards contiguous weights only; set strategy=ddp")
        if self.checkpoint.best and not self.evaluate_every:
            raise ConfigError(
                f"trainer.checkpoint.best={self.checkpoint.best} is judged at evaluations: set trainer.evaluate_every"
            )
        if self.patience and not self.checkpoint.best:
            raise ConfigError(
                f"trainer.patience={self.patience} counts evaluations without a better metric: set "
                "trainer.checkpoint.best to the metric, and trainer.evaluate_every"
            )


def _sentence(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > LONGEST_TEXT:
        raise PydanticCustomError("sentence", "must be one line of 1 to {limit} characters", {"limit": LONGEST_TEXT})
    return text.strip()


class EvaluateConfig(_Section):
    split: HeldOut
    sampler: Literal["prior", "gmm"]
    samples: Positive
    rows: Positive
    grid: Positive
    points: Positive
    projection: Literal["pca", "umap"]
    manipulate: list[Annotated[str, Field(coerce_numbers_to_str=True)]]
    strengths: Annotated[list[float], Field(min_length=1)]
    text: Annotated[str, AfterValidator(_sentence)] | None
    fidelity: Literal["inception", "imagenet", "dinov2", "digits"] | None
    fidelity_samples: Annotated[int, Field(ge=2)]
    blurred: bool
    transport_points: Annotated[int, Field(ge=2)]
    inception_weights: Path | None
    dinov2_weights: Path | None
    digit_classifier: Path
    seed: int


class Config(_Section):
    """A whole run. model and loader keep the names of the code they go to: see `check_arguments`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    run: RunConfig
    init: InitConfig = InitConfig()
    data: DataConfig
    loader: dict[str, Any]
    model: dict[str, Any]
    optim: OptimConfig
    trainer: TrainerConfig
    evaluate: EvaluateConfig


# What changes how a run is carried out, watched or stored, but not the mathematics of its result.
OPERATIONAL = {
    "run": ...,
    "loader": ...,
    "evaluate": ...,
    "data": {"path", "prepare"},
    "model": {"workers"},
    "trainer": {
        "micro_batches", "strategy", "shard_size", "compile", "deterministic", "activation_checkpointing",
        "channels_last", "device", "log_every", "evaluate_every", "patience", "checkpoint", "timeout",
    },
}  # fmt: skip


def of_stage(setting: Any, stage: str) -> Any:
    """A setting that is one value for all stages, or one by name for some."""
    return setting.get(stage) if isinstance(setting, dict) else setting


def signature(config: Config, length: bool = True) -> str:
    """10 hex digits of what defines the result; equal signatures are the same run. length: unless it is left out."""
    exclude: Any = {k: True if v is ... else v for k, v in OPERATIONAL.items()}
    content = config.model_dump(mode="json", exclude=exclude)
    trainer, init = config.trainer, config.init
    for key in ("max_steps", "max_epochs"):
        if not length or (key == "max_epochs" and trainer.max_epochs is None):
            content["trainer"].pop(key)
    if trainer.patience:  # then these decide where the training ends
        content["trainer"]["ends by"] = [trainer.patience, trainer.evaluate_every, trainer.checkpoint.best]
    if init.run is None:
        content.pop("init")
    else:  # wherever it lies; what it holds is compared with what the run began with
        content["init"]["from"] = init.run.parts[-3::2] if init.run.parent.name == "checkpoints" else init.run.name
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def run_dir(config: Config) -> Path:
    """The run's folder: run.dir, else run.root/run.name."""
    return config.run.dir or config.run.root / str(config.run.name)


def parse(content: Any) -> Config:
    """Types and ranges of every key but the model's arguments, whose class must be imported. Raises ConfigError."""
    config = checked(Config, content, "")
    _ = config.trainer.length
    for group in config.optim.groups:
        config.optim.of(group)
    return config


def _plain(hint: Any) -> Any:
    return _plain(typing.get_args(hint)[0]) if typing.get_origin(hint) is Annotated else hint


def _place(hint: Any, path: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """A path of pydantic's as the user's key, without the tags of unions, and the names beside its last part."""
    key, names = list[str](), list[str]()
    for part in path:
        hint = _plain(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [m for m in typing.get_args(hint) if m is not type(None)]
            tagged = [m for m in members if any(getattr(x, "tag", None) == part for x in _metadata(m))]
            hint = _plain((tagged or members)[0])
            if len(members) > 1:
                continue  # the part says which of them
        key.append(str(part))
        inner = typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            fields = {field.alias or name: field for name, field in hint.model_fields.items()}
            names, hint = list(fields), fields[str(part)].annotation if part in fields else Any
        else:  # of a list or a dictionary
            names, hint = [], inner[-1] if inner else Any
    return ".".join(key), names


def _metadata(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def checked(model: type[M], content: Any, where: str) -> M:
    """The content as a model. Raises ConfigError naming every wrong key under `where`."""
    try:
        return model.model_validate(content)
    except ValidationError as e:
        found = [(*_place(model, error["loc"]), error) for error in e.errors(include_url=False)]
        raise ConfigError(problems(where, found)) from e
