"""Duals of an assignment problem from its optimal matching, as compiled kernels: import this module only to solve.

With c the cost and s the optimal matching, row potentials p are the duals of an optimum exactly if
p_k <= p_i + w_ik with w_ik = c[i, s_k] - c[k, s_k], for every i and k: they are the shortest paths' inequalities.
Hence the paths from and to one row give the highest and the lowest p that are zero there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at once, without the GIL; keep the machine code for other processes where a folder can be written."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
        except (RuntimeError, OSError):  # a read-only source tree and home, or a full disk
            return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]

    return compiled


@_compiled("float64[:,::1](float64[:,::1], int64[::1])")
def edges(cost: Floats, match: NDArray[np.int64]) -> Floats:
    """w_ik = c[i, s_k] - c[k, s_k]: how much more i pays for k's partner: [m, m], [m] -> [m, m]."""
    m = len(match)
    own = np.empty(m)
    for k in range(m):
        own[k] = cost[k, match[k]]
    w = np.empty((m, m))
    for i in range(m):
        for k in range(m):
            w[i, k] = cost[i, match[k]] - own[k]
    return w


@_compiled("Tuple((float64[::1], boolean))(float64[:,::1], float64)")
def highest(w: Floats, tolerance: float) -> tuple[Floats, bool]:
    """Shortest paths from row 0 by Bellman-Ford: ([m], whether they settled); not if a cycle's length is negative."""
    m = len(w)
    p = w[0].copy()
    p[0] = 0.0
    news = np.ones(m, np.bool_)
    for _ in range(m + 1):
        settled = True
        for i in range(m):
            if not news[i]:
                continue
            news[i] = False
            for k in range(m):
                length = p[i] + w[i, k]
                if length < p[k] - tolerance:
                    p[k] = length
                    news[k] = True
                    settled = False
        if settled:
            return p, True
    return p, False


@_compiled("float64[::1](float64[:,::1], float64[::1])")
def spread(w: Floats, high: Floats) -> Floats:
    """The highest less the lowest duals [m]: Dijkstra's paths to row 0 with the lengths w_ik + p_i - p_k >= 0."""
    m = len(w)
    columns = np.empty((m, m))
    for i in range(m):
        for k in range(m):
            columns[k, i] = max(w[i, k] + high[i] - high[k], 0.0)
    length = columns[0].copy()
    length[0] = 0.0
    done = np.zeros(m, np.bool_)
    done[0] = True
    for _ in range(m - 1):
        nearest = -1
        for i in range(m):
            if not done[i] and (nearest < 0 or length[i] < length[nearest]):
                nearest = i
        done[nearest] = True
        for i in range(m):
            length[i] = min(length[i], length[nearest] + columns[nearest, i])
    return length
