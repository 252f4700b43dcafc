"""Maximum mean discrepancy with the inverse multiquadratic kernel."""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||^2: [n, d], [m, d] -> [n, m], by a matrix product, never negative."""
    cross = a @ b.T
    return (a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * cross).clamp_min(0)


def _kernel(squared_distances: Tensor, base: float) -> Tensor:
    """k = sum_s C_s / (C_s + d^2), C_s = base * s."""
    total = torch.zeros_like(squared_distances)
    for s in SCALES:
        total = total + (base * s) / (base * s + squared_distances)
    return total


def imq_mmd(codes: Tensor, prior: Tensor, sigma: float = 1.0) -> Tensor:
    """MMD(q, p) between n codes and n prior samples, both [n, ...] -> scalar, in float32 or better.

    k(a, b) = sum_s C_s / (C_s + ||a - b||^2), C_s = 2 d sigma^2 s, s in SCALES. The within terms are U-statistics
    (off-diagonal, / (n^2 - n)); the cross term is the plain mean over all n^2 pairs. (Tolstikhin et al., 2018.)
    ValueError for fewer than two rows or unequal numbers of them.
    """
    n = len(codes)
    if n < 2 or len(prior) != n:
        raise ValueError(f"MMD needs two equal batches of at least 2 rows, got {n} codes and {len(prior)} samples")
    with torch.autocast(codes.device.type, enabled=False):
        dtype = torch.promote_types(codes.dtype, torch.float32)
        a, b = codes.flatten(1).to(dtype), prior.flatten(1).to(dtype)
        base = 2.0 * a.shape[1] * sigma**2

        def within(z: Tensor) -> Tensor:
            off = 1.0 - torch.eye(n, dtype=dtype, device=z.device)
            return (_kernel(_squared_distances(z, z), base) * off).sum() / (n * n - n)

        return within(a) + within(b) - 2 * _kernel(_squared_distances(a, b), base).mean()
