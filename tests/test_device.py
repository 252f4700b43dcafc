"""Each rank on a GPU of its own, or a refusal that says what to do; copies of a state in host memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore

from dtrain.config import ConfigError
from dtrain.device import choose, claim
from dtrain.distributed import _shard_group
from dtrain.staging import HostBuffers
from dtrain.world import start
from tests.harness import whole
from tests.processes import launch

VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_CLUSTER_NAME", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch sees none, nor does anything else say that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1"),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "SLURM_CLUSTER_NAME": "dtrain"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_auto_refuses_the_cpu_where_slurm_gives_a_gpu(
    variables: dict[str, str], said: str | None, no_gpu: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        no_gpu.setenv(name, value)
    assert choose("cpu", 0).type == "cpu"
    if said is None:
        assert choose("auto", 0).type == "cpu"
    else:
        with pytest.raises(ConfigError, match=said):
            choose("auto", 0)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        choose("cuda", 0)


def test_auto_refuses_the_cpu_where_the_driver_shows_a_gpu(no_gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    driver.chmod(0o755)
    no_gpu.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"nvidia-smi shows 1 GPU.*trainer\.device=cpu"):
        choose("auto", 0)
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "")  # on purpose
    assert choose("auto", 0).type == "cpu"


def test_a_rank_has_the_gpu_of_its_number_or_the_only_one_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", bound.append)
    for count, rank, index in ((4, 3, 3), (1, 0, 0), (1, 3, 0)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert choose("auto", rank) == bound[-1] == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match="there are 4 GPUs for rank 4"):
        choose("cuda", 4)


@pytest.mark.parametrize("gpus", [["a/1", "a/2", "b/1"], ["a/1", "b/1", "a/1"]])
def test_two_ranks_on_one_gpu_are_refused_by_all(gpus: list[str]) -> None:
    store, wait = HashStore(), timedelta(seconds=30)

    def error(rank: int) -> str:
        try:
            claim(store, gpus[rank], rank, len(gpus), wait)
        except ConfigError as e:
            return str(e)
        return ""

    with ThreadPoolExecutor(len(gpus)) as threads:
        (said,) = set(threads.map(error, range(len(gpus))))
    assert ("have the same GPU, a/1: start one rank for each GPU" in said) == (len(set(gpus)) < len(gpus))


@pytest.mark.parametrize(("world", "group"), [(2, 2), (8, 8), (12, 12), (16, 8), (4096, 8)])
def test_networks_are_sharded_over_a_node_by_default(world: int, group: int) -> None:
    assert _shard_group(world) == group


def staged() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of a sharded network: what is copied, its copy, and whether a second copy lies in the same memory."""
    from torch.distributed.fsdp import fully_shard

    start("cpu", timeout=60)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    fully_shard(net)
    buffers = HostBuffers(pinned=False)
    first = dict(buffers.copy(net.state_dict()))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    again = buffers.copy(net.state_dict())
    same = torch.tensor([again[k] is first[k] for k in first])
    return [(whole(v).detach(), whole(again[k]), same) for k, v in net.state_dict().items()]


def test_host_buffers_hold_a_sharded_state_and_are_used_again() -> None:
    for rank in launch(2, staged):
        assert len(rank) == 7 and all(torch.equal(source, copy) and same.all() for source, copy, same in rank)
