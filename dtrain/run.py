"""One run: its folder, its checks, and the training in it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dtrain import config as configs
from dtrain.build import build_algorithm, build_loaders, open_data
from dtrain.config import Config, ConfigError
from dtrain.distributed import RanksMissing, World, environment, start, stop
from dtrain.evaluate.checks import check as check_evaluation
from dtrain.log import append_line
from dtrain.trainer import Trainer

LOST = 76  # EX_PROTOCOL: another rank is gone; the same command continues
# What a CPU must have one of, by the names of torch.cpu.get_capabilities(): x86, then Arm.
INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "submitit", "dtrain")


def run(config: Config, yaml: str) -> int:
    """Trains the configured run in its folder and returns the exit code. All is checked before the folder exists."""
    rank, size, _ = environment()
    config.trainer.check_world(size)
    splits = open_data(config)
    check_evaluation(config.evaluate, splits[0])
    algorithm = build_algorithm(config, splits[0].image_shape)
    folder = configs.run_dir(config)
    _check_folder(folder, config)
    if _finished(folder):
        if rank == 0:
            print(f"{folder} is finished; to train it anew, remove it or set run.dir or run.name")
        return 0
    world = start(config.trainer.device, config.trainer.timeout)
    if config.trainer.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    if world.main and emulated(config.trainer.precision, world.device):
        print(
            f"dtrain: this CPU emulates {config.trainer.precision}, which takes many times longer than "
            "trainer.precision=fp32",
            file=sys.stderr,
        )
    try:
        train, test = build_loaders(config, algorithm, splits, world)
        trainer = Trainer(config, algorithm, train, test, world, folder)
        if world.main:
            _open_folder(folder, yaml, world)
        world.barrier()
        return trainer.fit()
    except RanksMissing as e:
        print(f"dtrain: rank {rank}: {e}", file=sys.stderr)
        return LOST
    finally:
        if not world.broken:  # leaving a broken group can hang as long as the broken collective did
            stop()


def emulated(precision: str, device: torch.device) -> bool:
    """Whether the device is a CPU without instructions for the precision."""
    needed = INSTRUCTIONS.get(precision)
    if device.type != "cpu" or needed is None:
        return False
    return not any(torch.cpu.get_capabilities().get(name) for name in needed)


def evaluate_run(config: Config, folder: Path) -> None:
    """Evaluates the newest checkpoint of a run, draws its pictures, and adds a line to its metrics."""
    splits = open_data(config)
    check_evaluation(config.evaluate, splits[0])
    algorithm = build_algorithm(config, splits[0].image_shape)
    world = start(config.trainer.device, config.trainer.timeout)
    try:
        train, test = build_loaders(config, algorithm, splits, world)
        Trainer(config, algorithm, train, test, world, folder).evaluate()
    finally:
        stop()


def _status(folder: Path) -> dict[str, Any]:
    file = folder / "status.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _finished(folder: Path) -> bool:
    return _status(folder).get("state") == "finished"


def _check_folder(folder: Path, config: Config) -> None:
    """ConfigError if the folder holds another run."""
    if not (folder / "config.yaml").exists():
        return
    other = configs.validate(configs.load(folder / "config.yaml"))
    if configs.signature(other) == configs.signature(config):
        return
    ours, theirs = (_flat(c.model_dump(mode="json")) for c in (config, other))
    differing = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in ours.items() if theirs.get(k) != v]
    raise ConfigError(
        f"{folder} holds another run; choose run.name or run.dir. They differ in\n  " + "\n  ".join(differing)
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _open_folder(folder: Path, yaml: str, world: World) -> None:
    """config.yaml, environment.json, and a line in the metrics for this start."""
    folder.mkdir(parents=True, exist_ok=True)
    first = not (folder / "config.yaml").exists()
    (folder / "config.yaml").write_text(yaml)
    facts = _environment(world)
    (folder / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")
    append_line(folder / "metrics.jsonl", {"kind": "start", "restart": not first, "world_size": world.size})


def _environment(world: World) -> dict[str, Any]:
    root = Path(__file__).resolve().parent
    revision = None
    if shutil.which("git"):
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        revision = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    cuda = world.device.type == "cuda"
    return {
        "git": revision,
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or "cpu",
        "world_size": world.size,
    }
