"""A GPU that is not there: tensors of device cuda without numbers, through forward, backward and optimizers.

FakeTensorMode has every operation's device and shape, and computes nothing. Its backward asks the driver how many
GPUs there are; a small library, preloaded, answers in the driver's place. The patches leak: use it in a process of
its own, started with `environment(build(folder))`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "libcuda.so.1"  # the driver's own name, so that torch's libraries find its symbols here
SHIM = """
signed char fake_cuda_devices = 0;
signed char _ZN3c104cuda12device_countEv(void) { return fake_cuda_devices; } /* c10::cuda::device_count() */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
#define NO_DEVICE(name) int name(void) { return 100; }
"""
OWN = "cuDevicePrimaryCtxGetState"
COPIES = {"_to_copy", "copy_", "to"}


def missing() -> str | None:
    """What this machine lacks for it, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    tools = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} not found" if tools else None


def build(folder: Path) -> Path:
    """Compiles the library that stands in for the driver into the folder."""
    torch_library = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(torch_library)], capture_output=True, text=True, check=True
    ).stdout.split()
    stubs = [f"NO_DEVICE({name})" for name in symbols if name.startswith("cu") and name != OWN]
    library = folder / LIBRARY
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-x", "c", "-", "-o", str(library)],
        input=SHIM + "\n".join(stubs) + "\n", text=True, check=True,
    )  # fmt: skip
    return library


def environment(library: Path) -> dict[str, str]:
    """Of a process that may use fake_cuda."""
    return os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """cuda:0, on which all that is made inside lies: forward, backward, autocast and fused optimizers run on it."""
    import torch.cuda.amp.common as amp_common
    from torch._subclasses.fake_tensor import FakeTensorMode

    # What would initialise CUDA, or ask the device what it can do.
    torch.cuda.is_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    amp_common.amp_definitely_not_available = lambda: False
    torch._C._select_conv_backend = lambda *args, **kwargs: torch._C._ConvBackend.Cudnn
    fused = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("adam", "adamw", "sgd"):  # torch gives no shapes for these; they return nothing
        fused.impl(f"_fused_{name}_.tensor_lr", lambda *args, **kwargs: None)
    with FakeTensorMode():  # installs a device guard that does nothing, for which there may be devices from then on
        count = ctypes.c_int8.in_dll(ctypes.CDLL(LIBRARY), "fake_cuda_devices")
        count.value = 127
        try:
            with torch.autograd.set_multithreading_enabled(False):
                yield torch.device("cuda", 0)
        finally:
            count.value = 0


class HostSyncs(TorchDispatchMode):
    """Notes what a GPU could not do without waiting for the host: `found`, each with the project's line that asks.

    Copies between host and device are noted here; a number read back (.item(), `if tensor`), a shape that depends on
    numbers (a boolean mask), and operations on tensors of two devices raise in the fake mode: see `watched`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A number on the host goes along with a launch, unless it is copied.
        copied = func._overloadpacket.__name__ in COPIES
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and (t.dim() or copied)]
        if len({t.device.type for t in tensors}) > 1:
            self.found.append(f"{func} between host and device at {_place(traceback.extract_stack())}")
        return out

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Also notes what raises, in the place of the exception."""
        try:
            with self:
                yield
        except Exception as e:  # whatever the fake mode or torch has against the operation
            said = str(e).strip().split("\n")[0][:160]
            self.found.append(f"{type(e).__name__} ({said}) at {_place(traceback.extract_tb(e.__traceback__))}")


def _place(stack: traceback.StackSummary) -> str:
    """The innermost line of the project in a stack."""
    frames = [f for f in stack if f.filename.startswith(str(ROOT)) and f.filename != __file__]
    own = [f for f in frames if "site-packages" not in f.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "?"
