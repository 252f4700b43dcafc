"""Which device a rank trains on, and that it has it for itself."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import timedelta
from typing import Any

import torch

from dtrain.config import ConfigError

NOT_A_GPU = ("", "-1", "NoDevFiles")  # what CUDA_VISIBLE_DEVICES says where there is none


def choose(asked: str, local_rank: int) -> torch.device:
    """The device of trainer.device for a process of this node: cpu, or the GPU of its local rank.

    A task that is given one GPU for itself (srun --gpus-per-task) sees that one as number 0. ConfigError where there
    is no GPU for it, or where torch does not see those that the machine has: nobody wants to train beside them.
    """
    if asked == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if asked == "cuda":
            raise ConfigError("trainer.device=cuda: torch finds no GPU here")
        if found := unseen():
            raise ConfigError(
                f"trainer.device=auto: {found}, but torch {torch.__version__} finds none (is it built for the driver "
                "here?): install another torch, or set trainer.device=cpu"
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise ConfigError(
            f"there are {count} GPUs for rank {local_rank} of this node: start as many ranks on a node as it has GPUs"
        )
    device = torch.device("cuda", 0 if count == 1 else local_rank)
    bind(device)
    return device


def unseen() -> str | None:
    """What says that there is a GPU for this process, where torch has found none; None if nothing does."""
    if "SLURM_JOB_ID" in os.environ:
        if os.environ.get("SLURM_CLUSTER_NAME") == "dtrain":  # slurm/devcluster: its GPUs only count
            return None
        given = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
        names = [name for name in given if os.environ.get(name, "") not in NOT_A_GPU]
        return f"SLURM gives this job a GPU ({names[0]}={os.environ[names[0]]})" if names else None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in NOT_A_GPU or not shutil.which("nvidia-smi"):
        return None
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    gpus = [line for line in listed.splitlines() if line.startswith("GPU ")]
    return f"nvidia-smi shows {len(gpus)} GPU(s) here" if gpus else None


def bind(device: torch.device) -> None:
    """First of all in every thread that touches a device: a thread begins on GPU 0, whatever the process's own is."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def identity(device: torch.device) -> str:
    """The host, and the GPU by its UUID."""
    return f"{platform.node()}/{torch.cuda.get_device_properties(device).uuid}"


def claim(store: Any, gpu: str, rank: int, size: int, wait: timedelta) -> None:
    """ConfigError on every rank where two of them have the same GPU, which NCCL refuses. gpu: see identity."""
    owner = store.compare_set(f"gpu/{gpu}", "", str(rank)).decode()
    if owner != str(rank):
        store.set("gpu shared", f"ranks {owner} and {rank} have the same GPU, {gpu}")
    if store.add("gpus claimed", 1) == size:
        store.set("gpus known", "1")
    store.wait(["gpus known"], wait)
    if store.check(["gpu shared"]):
        raise ConfigError(f"{store.get('gpu shared').decode()}: start one rank for each GPU")
