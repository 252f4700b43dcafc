"""Parts of benchmarks/gpu.py: images/s, share of the GPU's peaks, memory. One row {model, way, …} for each way."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import packed as packs
from benchmarks.gpu_part import Rows, case, here
from benchmarks.kernels import GPUS, Gpu, counted, least
from dtrain import precision
from dtrain.meter import memory_mb
from dtrain.models.base import Stage
from dtrain.world import World, determine
from tests.cuda_steps import Rig, config_of
from tests.harness import Session, make_config

if TYPE_CHECKING:
    from benchmarks.gpu import Given

# The ways to train that are timed, the quickest to start first: compiling may take a part's whole time.
WAYS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("trainer.precision=bf16",),
    "bf16_channels_last": ("trainer.precision=bf16", "trainer.channels_last=true"),
    "fp32_compile": ("trainer.compile=true",),
    "bf16_compile": ("trainer.precision=bf16", "trainer.compile=true"),
}
CONV = "{kernel: 3, filters: 4, resample: true, latent: [1, %d, %d]}"
TINY: dict[str, tuple[str, ...]] = {
    "stackedwae": ("model.levels=[{latent: 4, hidden: 8}, {latent: 2, hidden: 8}]",),
    "stackedwae_svhn": (f"model.levels=[{CONV % (16, 16)}, {CONV % (8, 8)}]",),
    "stackedwae_celeba": (f"model.levels=[{CONV % (32, 32)}, {CONV % (16, 16)}]",),
    "wae_mmd": ("model.width=4",),
    "swae_celeba": ("model.width=4", "model.critic_width=4", "model.hidden=8"),
}
BLOCKS = 5


def peaks() -> Gpu | None:
    """Of the GPU, where they are known, by its name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = {"H100": "h100-sxm", "H200": "h200-sxm"}
    found = [gpu for part, gpu in known.items() if part in name and not {"PCIe", "NVL"} & set(name.split())]
    return GPUS[found[0]] if found else None


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], None], budget: float, device: torch.device) -> float:
    """Of a step, not waiting for the device after each: the median of blocks that take `budget` seconds in all."""

    def block(count: int) -> float:
        wait(device)
        begin = time.perf_counter()
        for _ in range(count):
            step()
        wait(device)
        return (time.perf_counter() - begin) / count

    block(3)  # compiles, and makes the optimizers' states
    count = max(1, int(budget / BLOCKS / block(3)))
    return statistics.median(block(count) for _ in range(BLOCKS))


def rig_of(model: str, overrides: tuple[str, ...], tiny: bool, device: torch.device) -> Rig:
    """The model in a way, with a batch of its own configuration's size."""
    config = config_of(model, *overrides, *((*TINY[model], "trainer.batch_size=8") if tiny else ()))
    precision.use(config.trainer.precision)
    rig = Rig(config, device, rows=config.trainer.batch_size)
    if config.trainer.channels_last:
        rig.algorithm.to(memory_format=torch.channels_last)
    return rig


def stepper(rig: Rig, stage: Stage) -> Callable[[], None]:
    """Steps on a batch that is on the device, not logged."""
    items = repeat(next(rig.items(stage)))

    def step() -> None:
        rig.step(stage, items)
        rig.updater.records.clear()

    return step


def measure(model: str, way: str, given: Given) -> dict[str, Any]:
    """One row."""
    device, gpu = here(), peaks()
    gc.collect()  # what the way before has left
    if "compile" in way:
        torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rig = rig_of(model, WAYS[way], given.tiny, device)
    (stage,) = rig.algorithm.stages()
    kernels = None if rig.config.trainer.compile else counted(rig, stage)
    took = seconds(stepper(rig, stage), 0.05 if given.tiny else 4.0, device)
    row: dict[str, Any] = {
        "model": model, "way": way, "batch": rig.rows, "images_per_s": round(rig.rows / took),
        "step_ms": round(took * 1e3, 3), "memory_mb": round(memory_mb(device)),
        "ok": all(bool(p.isfinite().all()) for p in rig.algorithm.parameters()),
    }  # fmt: skip
    if kernels is not None:
        row["kernels"] = kernels.count
        if gpu is not None:
            shortest = least(kernels, gpu, rig.config.trainer.precision)
            row |= {"roofline_ms": round(shortest * 1e3, 3), "roofline_share": round(shortest / took, 3)}
    return row


def speed(given: Given, model: str) -> Rows:
    """A model in every way, while there is time."""
    for way in ("fp32",) if given.tiny else WAYS:
        needs = 60 if "compile" in way else 10
        yield case(given, f"{model} {way}", partial(measure, model, way, given), needs)


def packed(given: Given) -> Rows:
    """The MNIST grid in one process: a member's step in a pack of 25 against its step alone."""
    precision.use("fp32")
    size, members, rounds, repeats = ("small", 2, 1, 1) if given.tiny else ("full", 25, 5, 20)

    def compared() -> dict[str, Any]:
        found = packs.compare(size, members, rounds, repeats, here())
        rates = {k: round(packs.BATCH / found[f"{k}_ms"] * 1e3) for k in ("packed", "alone")}
        return {**found, **{f"{k}_images_per_s": rate for k, rate in rates.items()}}

    yield case(given, f"{members} of {size} size", compared)


def _twice(model: str, device: torch.device, name: str) -> dict[str, Any]:
    """Three steps of a small model, twice: the same bits?"""
    config = make_config(model, f"trainer.precision={name}")
    sessions = [Session(config, World(device=device), double=False) for _ in range(2)]
    for session in sessions:
        session.steps(3)
    a, b = (s.weights() for s in sessions)
    return {"ok": all(torch.equal(a[k], b[k]) for k in a)}


def deterministic(given: Given) -> Rows:
    """trainer.deterministic=true: the same bits twice, and what it costs; the table compares with the speed parts."""
    determine()
    for name in ("fp32", "bf16"):
        precision.use(name)
        for model in ("stackedwae", "swae", "wae_mmd", "vampprior", "alice"):
            yield case(given, f"{model} {name} twice", partial(_twice, model, here(), name))
    for model in ("stackedwae", "stackedwae_svhn", "swae_celeba", "stackedwae_celeba"):
        for way in ("fp32", "bf16"):
            row = case(given, f"{model} {way}", partial(measure, model, way, given), needs=10)
            yield row | {"way": f"deterministic_{way}"} if "way" in row else row
