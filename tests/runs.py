"""Whole runs for tests: shards, a frozen configuration, and the run itself, in this process or by command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

from data_prep.arrays import array_source
from data_prep.writer import write_split
from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.checkpoint import steps
from dtrain.models.base import DataFacts
from dtrain.run import run
from dtrain.tensors import model_state
from tests.harness import LEVELS, SHAPE

ROOT = Path(__file__).resolve().parent.parent


def write_shards(folder: Path, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> None:
    """Noise: 96 images to train on, 20 to validate, 20 to test."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 96), ("test", 20), ("valid", 20)):
        images = rng.integers(0, 256, (count, *shape[1:], shape[0]), dtype=np.uint8)
        write_split(folder / split, array_source(images, rng.integers(0, 10, count), {"what": "noise"}, None, split))


def write_shades(
    folder: Path, shape: tuple[int, int, int] = SHAPE, formats: tuple[str, ...] = ("npy",), **shades: int
) -> None:
    """32 images of every split named, of noise above its shade: 0 for dark ones, 215 for bright ones."""
    for split, shade in shades.items():
        images = np.random.default_rng(shade).integers(shade, shade + 41, (32, *shape[1:], shape[0]), dtype=np.uint8)
        write_split(folder / split, array_source(images, np.arange(32) % 10, {"what": "noise"}, None, split), formats)


def freeze(run_dir: Path, shards: Path, *overrides: str, model: dict[str, Any] | None = None) -> Path:
    """A configuration file of a tiny run, beside its folder. Batch 16, log every 5 steps, save every 10."""
    cfg = configs.compose([
        LEVELS, f"data.image_shape={list(SHAPE)}", f"data.path={shards}", f"run.dir={run_dir}",
        "trainer.batch_size=16", "trainer.max_steps=40", "trainer.log_every=5", "trainer.checkpoint.every=10",
        "trainer.timeout=60", "evaluate.samples=4", "evaluate.rows=4", "evaluate.grid=3", "evaluate.points=20",
        "run.report=false",
        *overrides,
    ])  # fmt: skip
    if model is not None:
        cfg.model = model
    file = run_dir.with_suffix(".yaml")
    file.write_text(OmegaConf.to_yaml(cfg))
    return file


def execute(file: Path) -> int:
    """The run of a frozen configuration, in this process."""
    cfg = configs.load(file)
    return run(configs.read(cfg), OmegaConf.to_yaml(cfg))


def command(*arguments: str | Path, world: int = 1) -> list[str]:
    """The user's command line: python -m dtrain, or torchrun."""
    start = [sys.executable]
    if world > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return [*start, "-m", "dtrain", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread per process: the tests share two cores."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def call(*arguments: str | Path, world: int = 1, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, world=world), cwd=cwd, capture_output=True, text=True, timeout=900, check=False,
        env=environment(),
    )  # fmt: skip


def metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def evaluations(run_dir: Path, split: str = "valid") -> list[dict[str, Any]]:
    return [line for line in metrics(run_dir, "evaluation") if line["split"] == split]


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


def final_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights of the newest checkpoint."""
    config = configs.read(configs.load(run_dir.with_suffix(".yaml")))
    state = model_state(build_algorithm(config, DataFacts(config.data.image_shape, images=96)))
    dcp.load(state, checkpoint_id=steps(run_dir / "checkpoints")[-1], no_dist=True)
    return state
