"""The assignment problem and the range of its duals, as compiled kernels: import this module only to solve.

An auction whose bids shrink (Bertsekas, 1988) finds nearly optimal prices; shortest augmenting paths (Jonker and
Volgenant, 1987) make of them an exact optimum. Prices v_j are right for a matching if every row i is matched where
c_ij - v_j is least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

BIDS = (0.5, 0.1, 0.02, 0.004)  # the auction's least bids, in mean deviations of the costs
PATIENCE = 16  # an auction ends after that many bids a row: the paths do the rest


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at once, without the GIL; keep the machine code for other processes where a folder can be written."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # a read-only source tree and home, or a full disk
            return numba.njit(signature, nogil=True)(function)

    return compiled


@_compiled("void(float64[:,::1], float64[::1], int64[::1], int64[::1], float64, int64)")
def _auction(cost: Floats, v: Floats, match: Indices, owner: Indices, least: float, limit: int) -> None:
    """Rows without a match (-1) bid in place until none is left, or `limit` bids are made.

    A row takes its best column from its owner and lowers v there by `least` and by what it is better than the second.
    With least = 0 the duals stay exact, and a row that would take a column at no gain stays without.
    """
    m, bids, waiting = len(v), 0, 0
    rows = np.empty(m, np.int64)
    for i in range(m - 1, -1, -1):
        if match[i] < 0:
            rows[waiting] = i
            waiting += 1
    while waiting and bids < limit:
        bids += 1
        waiting -= 1
        i = rows[waiting]
        best, first, second = 0, np.inf, np.inf
        for j in range(m):
            price = cost[i, j] - v[j]
            if price < second:
                if price < first:
                    best, first, second = j, price, first
                else:
                    second = price
        rival = owner[best]
        gain = second - first + least if m > 1 else 0.0
        if rival >= 0 and gain <= 0:
            continue
        v[best] -= gain
        owner[best] = i
        match[i] = best
        if rival >= 0:
            match[rival] = -1
            rows[waiting] = rival
            waiting += 1


@_compiled("void(float64[:,::1], float64[::1], int64[::1], int64[::1], int64)")
def _augment(cost: Floats, v: Floats, match: Indices, owner: Indices, start: int) -> None:
    """Match row `start` along the shortest path to a column without an owner, and keep the prices right, in place."""
    m, settled = len(v), 0
    length, unsettled = np.full(m, np.inf), v.copy()  # both infinite where a column is settled
    source = np.empty(m, np.int64)  # the row from which a column is reached
    columns, lengths = np.empty(m, np.int64), np.empty(m)  # the settled ones
    i, base = start, 0.0
    while True:
        column, best = 0, np.inf
        for j in range(m):
            through = base + (cost[i, j] - unsettled[j])
            if through < length[j]:
                length[j] = through
                source[j] = i
            if length[j] < best:
                column, best = j, length[j]
        if owner[column] < 0:
            break
        columns[settled], lengths[settled] = column, best
        settled += 1
        length[column], unsettled[column] = np.inf, -np.inf
        i = owner[column]
        base = best - (cost[i, column] - v[column])
    for n in range(settled):
        v[columns[n]] += lengths[n] - best
    while True:
        i = source[column]
        owner[column] = i
        match[i], column = column, match[i]
        if i == start:
            return


@_compiled("Tuple((int64[::1], float64[::1]))(float64[:,::1])")
def solve(cost: Floats) -> tuple[Indices, Floats]:
    """[m, m] finite -> an optimal matching [m] and prices v [m] that are right for it."""
    m = len(cost)
    v = np.zeros(m)
    match, owner = np.full(m, -1), np.full(m, -1)
    mean, deviation = cost.mean(), 0.0
    for i in range(m):
        deviation += np.abs(cost[i] - mean).mean() / m
    for bid in BIDS:
        if deviation > 0:
            match[:] = -1
            owner[:] = -1
            _auction(cost, v, match, owner, bid * deviation, PATIENCE * m)
    for i in range(m):  # a bid's excess leaves matches that are not exact
        j = match[i]
        if j >= 0 and cost[i, j] - v[j] > (cost[i] - v).min():
            match[i] = -1
            owner[j] = -1
    _auction(cost, v, match, owner, 0.0, 2 * m)
    for i in range(m):
        if match[i] < 0:
            _augment(cost, v, match, owner, i)
    return match, v


@_compiled("float64[::1](float64[:,::1], int64[::1], float64[::1], float64[::1], int64)")
def _paths(cost: Floats, owner: Indices, u: Floats, v: Floats, start: int) -> Floats:
    """Shortest paths [m] from column `start`, by Dijkstra: the step j -> k is c_ik - u_i - v_k >= 0, i owns j."""
    m = len(v)
    paths, length, unsettled = np.zeros(m), np.full(m, np.inf), v.copy()
    column, best = start, 0.0
    for _ in range(m - 1):
        paths[column] = best
        length[column], unsettled[column] = np.inf, -np.inf
        i = owner[column]
        base = best - u[i]
        column, best = 0, np.inf
        for j in range(m):
            through = base + (cost[i, j] - unsettled[j])
            length[j] = min(length[j], through)
            if length[j] < best:
                column, best = j, length[j]
    if m > 1:
        paths[column] = best
    return paths


@_compiled("Tuple((float64[::1], float64[::1], float64))(float64[:,::1], int64[::1], float64[::1])")
def duals(cost: Floats, match: Indices, v: Floats) -> tuple[Floats, Floats, float]:
    """The lowest and the highest optimal phi [m] that agree at row 0, and the least slack of v: an error below 0.

    With s the matching, phi is optimal if phi_k <= phi_i + c[i, s_k] - c[k, s_k] for all i, k: the inequalities of
    shortest paths, those from row 0 and those to it. v turns their lengths into ones of at least 0.
    """
    m, block = len(v), 32
    owner, u = np.empty(m, np.int64), np.empty(m)
    for i in range(m):
        owner[match[i]] = i
        u[i] = cost[i, match[i]] - v[match[i]]
    least = 0.0
    transposed = np.empty((m, m))
    for top in range(0, m, block):  # a block of either matrix stays in the cache
        for left in range(0, m, block):
            for i in range(top, min(top + block, m)):
                for j in range(left, min(left + block, m)):
                    transposed[j, i] = cost[i, j]
                    least = min(least, cost[i, j] - u[i] - v[j])
    lowest = -u - _paths(transposed, match, v, u, 0)
    highest = -u + _paths(cost, owner, u, v, match[0])[match]
    return lowest, highest, least
