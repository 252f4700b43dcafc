"""Maximum mean discrepancy with the inverse multiquadratic kernel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dtrain.precision import exact

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _constants(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """SCALES [7, 1, 1, 1], and the weights [3, n, n] of the pairs within one side, the other, and of both.

    Filled on the device: a list of numbers would be copied there, for which the host waits.
    """
    scales = torch.stack([torch.full((1, 1, 1), s, dtype=dtype, device=device) for s in SCALES])
    within = (1 - torch.eye(n, dtype=dtype, device=device)) / (n * n - n)
    return scales, torch.stack([within, within, torch.full_like(within, -2 / (n * n))])


_kept_constants = functools.lru_cache(maxsize=16)(_constants)


def imq_mmd(codes: Tensor, prior: Tensor, sigma: float = 1.0) -> Tensor:
    """MMD(q, p) between n codes and n prior samples, both [n, ...] -> scalar, in float32 or better.

    k(a, b) = sum_s C_s / (C_s + ||a - b||^2), C_s = 2 d sigma^2 s, s in SCALES. The within terms are U-statistics
    (off-diagonal, / (n^2 - n)); the cross term is the plain mean over all n^2 pairs. (Tolstikhin et al., 2018.)
    Three matrices [n, n] in one pass, of which some 45 kernels are started, backward included.
    ValueError for fewer than two rows or unequal numbers of them.
    """
    n = len(codes)
    if n < 2 or len(prior) != n:
        raise ValueError(f"MMD needs two equal batches of at least 2 rows, got {n} codes and {len(prior)} samples")
    with torch.autocast(codes.device.type, enabled=False):
        dtype = exact(codes.dtype)  # the distances cancel
        a, b = codes.flatten(1).to(dtype), prior.flatten(1).to(dtype)
        constants = _constants if torch.compiler.is_compiling() else _kept_constants
        scales, weights = constants(n, dtype, a.device)
        left, right = torch.stack([a, b, a]), torch.stack([a, b, b])
        squares = left.square().sum(2)[:, :, None] + right.square().sum(2)[:, None, :]
        distances = torch.baddbmm(squares, left, right.mT, alpha=-2).clamp_min(0)  # |left_i - right_j|^2
        bases = scales * (2.0 * a.shape[1] * sigma**2)
        return (
            ((bases / (bases + distances)).sum(0) * weights).sum().to(torch.promote_types(codes.dtype, torch.float32))
        )
