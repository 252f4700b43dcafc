"""Parts of benchmarks/gpu.py: what is claimed of a step on a GPU. One row {case, ok, …} for each case."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import kill_test
from benchmarks.gpu_part import Rows, case, here
from dtrain import precision
from dtrain.distributed import wrap
from dtrain.nets.batchnorm import SyncBatchNorm
from dtrain.noise import Noise
from dtrain.update import Updater
from dtrain.world import World
from tests.cuda_steps import WAYS, Rig, config_of
from tests.fake_cuda import HostSyncs
from tests.harness import MODELS, Session, make_config
from tests.runs import write_shards

if TYPE_CHECKING:
    from benchmarks.gpu import Given

CPU = torch.device("cpu")
# Else Adam makes full steps of the rounding of gradients that are 0.
EPS = "optim.default.eps=1e-4"
# Largest distances, relative to the way that the weights went: of two devices in float64, whose noise is float32 and
# rounded differently, and in fp32.
DOUBLE, SINGLE = 1e-4, 1e-2
Weights = dict[str, Tensor]
SMALL = [m for m in MODELS if m not in ("adversary", "eight_gaussians")]  # a test's; one without networks of images


def noise(given: Given) -> Rows:
    """Uniform numbers are the CPU's to the bit; normal ones but for the rounding of log and cos; one pass or many."""
    sites = {"a": (3, 5), "b": (7,), "c": (2, 16, 16)}
    ours, theirs = (Noise.of(256, seed=9, start=2**33, device=d) for d in (here(), CPU))
    for site, shape in sites.items():
        u, v = ours.uniform(site, *shape).cpu(), theirs.uniform(site, *shape)
        yield {"case": f"uniform {shape}", "ok": torch.equal(u, v)}
        x, y = ours.normal(site, *shape).cpu(), theirs.normal(site, *shape)
        far = float((x - y).abs().max())
        yield {"case": f"normal {shape}", "ok": far < 1e-5, "most": far, "same_bits": float((x == y).float().mean())}
    ahead = ours.ahead(sites)
    same = [torch.equal(ahead.normal(k, *s), ours.normal(k, *s)) for k, s in sites.items()]
    yield {"case": "in one pass", "ok": all(same)}


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    """What waits for the GPU raises, on a GPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _syncs(model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Two steps of every stage, of which the first records all that any step does."""
    config, device = config_of(model, *overrides), here()
    precision.use(config.trainer.precision)
    rig, syncs = Rig(config, device), HostSyncs()
    for stage in rig.algorithm.stages():
        for number in range(2):
            items = rig.items(stage)
            with _no_waiting(device), syncs.watched():
                rig.step(stage, items, measure=number == 0)
    return {"ok": not syncs.found, **({"found": sorted(set(syncs.found))} if syncs.found else {})}


def no_sync(given: Given) -> Rows:
    """No step waits for the host, copies between host and device, or mixes devices: see tests/test_fake_cuda.py."""
    for way, (models, overrides) in WAYS.items():
        for model in models[:2] if given.tiny else models:
            yield case(given, f"{model} {way}", partial(_syncs, model, overrides))


def drift(a: Weights, b: Weights, before: Weights) -> float:
    """How far two trained models are apart, relative to the way that b went from `before`."""

    def length(x: Weights, y: Weights) -> float:
        return sum(float((x[k].double().cpu() - y[k].double().cpu()).square().sum()) for k in x) ** 0.5

    return length(a, b) / length(b, before)


def _trained(model: str, device: torch.device, double: bool = False, *own: str) -> tuple[Weights, dict[str, float]]:
    """Weights after five steps of a small model, and the metrics of the first."""
    session = Session(make_config(model, EPS, *own), World(device=device), double)
    precision.use(session.config.trainer.precision)
    metrics = session.steps(1)
    session.steps(4)
    return session.weights(), metrics


def _agrees(model: str, double: bool) -> dict[str, Any]:
    """The device's steps against the CPU's: relative distances of the first losses, and of the weights after five."""
    before = Session(make_config(model), World(), double).weights()
    (ours, first), (theirs, expected) = (_trained(model, d, double) for d in (here(), CPU))
    losses = max(abs(first[k] - v) / max(abs(v), 1e-3) for k, v in expected.items() if k.startswith("loss"))
    far, most = drift(ours, theirs, before), DOUBLE if double else SINGLE
    return {"ok": far < most and losses < most, "losses": f"{losses:.1e}", "weights": f"{far:.1e}", "most": most}


def _finite(model: str, name: str) -> dict[str, Any]:
    weights, _ = _trained(model, here(), False, f"trainer.precision={name}")
    return {"ok": all(bool(w.isfinite().all()) for w in weights.values())}


def parity(given: Given) -> Rows:
    """Small networks of every model: the CPU's steps, and finite ones in half precision."""
    models = SMALL[:2] if given.tiny else SMALL
    checks: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
        ("fp32", partial(_agrees, double=False)), ("float64", partial(_agrees, double=True)),
        ("finite bf16", partial(_finite, name="bf16")), ("finite fp16", partial(_finite, name="fp16")),
    ]  # fmt: skip
    for name, check in checks:
        for model in models:
            yield case(given, f"{model} {name}", partial(check, model))


def join() -> World:
    """A process group of this process alone, in which networks are wrapped all the same."""
    device = here()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kill_test.free_port())}
    cuda = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", rank=0, world_size=1, device_id=device if cuda else None
    )
    return World(device=device)


def _normalised(x: Tensor, dy: Tensor, device: torch.device) -> list[Tensor]:
    """A step of a synchronised batch norm: output, gradients, running statistics; in float64 on the CPU."""
    torch.manual_seed(1)
    norm = SyncBatchNorm(x.shape[1])
    torch.nn.init.normal_(norm.weight)
    norm.to(device)
    own = x.to(device, copy=True).requires_grad_()
    y = norm(own)
    y.backward(dy.to(device))
    found = [y, own.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [t.detach().double().cpu() for t in found if t is not None]


def _norm(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    x, dy = (3 + torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    if channels_last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    pairs = zip(_normalised(x, dy, here()), _normalised(x, dy, CPU), strict=True)
    far = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    most = 1e-5 if dtype is torch.float32 else 2e-2
    return {"ok": far < most, "distance": f"{far:.1e}", "most": most}


def norms(given: Given) -> Rows:
    """The kernels of synchronised batch norm against the formula on the CPU."""
    join()
    for shape in ((64, 32), (64, 16, 8, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True) if len(shape) == 4 else (False,):
                name = f"{shape} {str(dtype).removeprefix('torch.')}{' channels_last' if last else ''}"
                yield case(given, name, partial(_norm, shape, dtype, last))


def _wrapped(model: str, strategy: str, world: World) -> dict[str, Any]:
    """Five steps of the bare networks and of wrapped ones on the same device."""
    sessions = [Session(make_config(model, EPS), world) for _ in range(2)]
    bare, wrapped = sessions
    before, config = bare.weights(), wrapped.config
    wrap(wrapped.algorithm, world, strategy, None, True)
    wrapped.updater = Updater(wrapped.algorithm, config.optim, config.trainer, world)
    for session in sessions:
        session.steps(5)
    far = drift(wrapped.weights(), bare.weights(), before)
    return {"ok": far < 1e-9, "weights": f"{far:.1e}", "most": 1e-9}


def ranks(given: Given) -> Rows:
    """DDP and FSDP on one GPU by NCCL, in float64: the bare networks' steps."""
    world = join()
    for strategy in ("ddp", "fsdp"):
        for model in ("stackedwae", "swae", "wae_mmd"):
            yield case(given, f"{model} {strategy}", partial(_wrapped, model, strategy, world))


def _killed(
    run: Path, shards: Path, expected: Weights, seconds: float, rng: random.Random, own: Any
) -> dict[str, Any]:
    kills = kill_test.trial(run, shards, expected, seconds, rng, 1, own)
    return {"ok": kills >= 0, "kills": kills}


def killed(given: Given) -> Rows:
    """A run killed at random moments, and gone on with, has the weights of an undisturbed one, bit by bit."""
    rng, own = random.Random(0), ("trainer.deterministic=true", "run.report=false")
    with tempfile.TemporaryDirectory() as folder:
        shards, whole = Path(folder) / "noise", Path(folder) / "whole"
        write_shards(shards, shape=(1, 28, 28))
        seconds = kill_test.undisturbed(whole, shards, 1, own)
        expected = kill_test.weights(whole)
        for i in range(1 if given.tiny else 3):
            run = Path(folder) / f"trial{i}"
            yield case(given, f"trial {i}", partial(_killed, run, shards, expected, seconds, rng, own), needs=70)
