"""What fp32 means on a device: IEEE, unless a run asks for TF32."""

from __future__ import annotations

import torch

_tf32 = False  # torch's own getter would break the graph of a compiled loss


def use(precision: str) -> None:
    """Of this process's convolutions and products of float32: trainer.precision=tf32 rounds them to 10 bits.

    Everything else has them in IEEE, where cuDNN by itself rounds convolutions. By torch's older switches, since its
    compiler asks for those.
    """
    global _tf32  # noqa: PLW0603  # as torch's are
    _tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if _tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = _tf32


def exact(dtype: torch.dtype) -> torch.dtype:
    """The type, at least float32, in which products are not rounded to TF32: float64 where that is in use."""
    return torch.float64 if _tf32 else torch.promote_types(dtype, torch.float32)
