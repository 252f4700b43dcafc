"""What a training step asks of a GPU: kernels, FLOPs and bytes of every model, and the least time they take.

  python -m benchmarks.kernels
  python -m benchmarks.kernels stackedwae swae_celeba --batch 64 --precision bf16

No GPU is needed: tensors are fake (tests/fake_cuda.py). kernels: operations that compute or move, a fused or a
foreach one counted once. flop: of products and convolutions. bytes: read and written by each kernel, as if no cache
kept any. roofline_us: the longer of what the two take at the GPU's peaks; launch_us: of starting the kernels one by
one. A step takes at least the longer of these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dtrain.models.base import Stage
from tests.cuda_steps import EVERY, Rig, config_of
from tests.fake_cuda import LIBRARY, build, environment, fake_cuda, missing


class Gpu(NamedTuple):
    """Peaks: bytes/s, and FLOP/s of dense products by trainer.precision."""

    bandwidth: float
    flops: dict[str, float]


# NVIDIA's datasheets of the H100 and the H200, SXM; their tensor core figures, given with sparsity, halved.
HOPPER = {"fp32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12, "fp16": 989.5e12}
GPUS = {"h100-sxm": Gpu(3.35e12, HOPPER), "h200-sxm": Gpu(4.8e12, HOPPER)}
LAUNCH = 5e-6  # seconds from Python to the start of a kernel, an eager step's usual figure
# What starts no kernel: views, questions about a tensor, memory without content.
NONE = {
    "_record_function_enter_new", "_record_function_exit", "_reshape_alias", "_unsafe_view", "alias", "as_strided",
    "chunk", "detach", "device", "dim", "empty", "empty_like", "empty_strided", "expand", "is_contiguous",
    "is_pinned", "is_same_size", "lift_fresh", "new_empty", "new_empty_strided", "numel", "permute", "reshape",
    "select", "size", "slice", "split", "split_with_sizes", "squeeze", "stride", "sym_size", "t", "transpose",
    "unbind", "unsafe_split",
    "unsqueeze", "view",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts the kernels that are started, the bytes that they touch, and the FLOPs of products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes, self.flop = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if func._overloadpacket.__name__ not in NONE and any(t.device.type == "cuda" for t in tensors):
            self.count += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted(rig: Rig, stage: Stage) -> Kernels:
    """Of one step of a stage that is not logged."""
    items = repeat(next(rig.items(stage)))  # the loader's kernels are not the step's
    rig.step(stage, items)  # makes the optimizers' states
    with Kernels() as kernels:
        rig.step(stage, items)
    return kernels


def least(kernels: Kernels, gpu: Gpu, precision: str) -> float:
    """Seconds that the work takes at the GPU's peaks."""
    return max(kernels.flop / gpu.flops[precision], kernels.bytes / gpu.bandwidth)


def measure(model: str, batch: int, precision: str, gpu: Gpu, device: torch.device) -> list[dict[str, Any]]:
    """One line for each stage of the model: of a step that is not logged."""
    config = config_of(model, f"trainer.precision={precision}", f"trainer.batch_size={batch}")
    rig, lines = Rig(config, device, rows=batch), []
    for stage in rig.algorithm.stages():
        kernels = counted(rig, stage)
        shortest = least(kernels, gpu, precision)
        lines.append({
            "model": model, "stage": stage.name, "batch": batch, "precision": precision, "kernels": kernels.count,
            "flop": kernels.flop, "bytes": kernels.bytes, "roofline_us": round(shortest * 1e6, 1),
            "launch_us": round(kernels.count * LAUNCH * 1e6),
        })  # fmt: skip
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=EVERY, metavar="MODEL", help="default: every configuration")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100-sxm")
    given = parser.parse_args()
    if why := missing():
        parser.error(f"the fake GPU cannot be made: {why}")
    if LIBRARY not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]]
            return subprocess.run(command, env=environment(build(Path(folder))), check=False).returncode
    with fake_cuda() as device:
        for model in given.models:
            for line in measure(model, given.batch, given.precision, GPUS[given.gpu], device):
                print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
