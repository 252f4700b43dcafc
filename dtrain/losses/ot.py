"""Exact optimal transport between two equally large point sets, with its dual variables, in numpy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Solver = Literal["lapjv", "pot"]

LARGEST = 1e250  # sums of costs stay finite


class Transport(NamedTuple):
    """An optimal matching and optimal duals of one cost matrix.

    phi [m]: H_i of the noises; psi [m]: H_j of the codes, both float64 and centred: their 2m values have mean 0.
    match [m] int64: sigma, noise i goes to code match[i], where psi[match[i]] - phi[i] = cost[i, match[i]].
    """

    phi: Floats
    psi: Floats
    match: Indices


def half_squared_distances(x: ArrayLike, y: ArrayLike) -> Floats:
    """c_ij = 1/2 |x_i - y_j|^2: [m, d], [m, d] -> [m, m] float64, by a matrix product, never negative."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centre = (a.mean(0) + b.mean(0)) / 2  # far from the origin, the product would cancel
    a, b = a - centre, b - centre
    cost = a @ -b.T
    cost += np.einsum("id,id->i", a, a)[:, None] / 2
    cost += np.einsum("id,id->i", b, b) / 2
    return np.maximum(cost, 0.0, out=cost)


def transport(cost: ArrayLike, solver: Solver = "lapjv") -> Transport:
    """Solve max mean(psi) - mean(phi) s.t. psi_j - phi_i <= c_ij exactly (Eq. 14 of AE-OT): cost [m, m].

    The optimal duals are a polytope. lapjv: an auction and shortest augmenting paths; the mean of the lowest and the
    highest duals that agree at row 0. pot: POT's network simplex, the reference; a corner of the polytope.
    match minimises phi_i + c_ij - psi_j over j (Eq. 17). So do other j, up to rounding: in a corner in a third of the
    rows, halfway in a fifth. Hence take match itself.
    ValueError unless cost is square, finite (up to LARGEST) and not empty, and for an unknown solver; RuntimeError
    where a solver finds no optimum.
    """
    c = np.require(cost, np.float64, ["C", "A", "W", "E"])  # as the kernels take it: a copy only of what is not so
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not c.size:
        raise ValueError(f"a cost matrix must be square and not empty, got {list(c.shape)}")
    if not max(c.max(), -c.min()) <= LARGEST:  # NaN is not
        raise ValueError(f"a cost matrix must be finite, up to {LARGEST:g}: it has larger costs or NaN")
    solvers = {"lapjv": _lapjv, "pot": _pot}
    if solver not in solvers:
        raise ValueError(f"unknown solver {solver!r}: one of {', '.join(solvers)}")
    phi, psi, match = solvers[solver](c)
    centre = (phi.mean() + psi.mean()) / 2
    return Transport(phi - centre, psi - centre, match)


def _lapjv(cost: Floats) -> Transport:
    """The matching, and halfway between the lowest and the highest duals."""
    from dtrain.losses import assignment

    match, prices = assignment.solve(cost)
    low, high, least = assignment.duals(cost, match, prices)
    if not least >= -1e-10 * float(np.abs(cost).max()):
        raise RuntimeError("the prices are not right for the matching")
    phi = low + (high - low) / 2
    psi = np.empty_like(phi)
    psi[match] = phi + cost[np.arange(len(cost)), match]
    return Transport(phi, psi, match)


def _pot(cost: Floats) -> Transport:
    """POT's network simplex: its duals u, v have u_i + v_j <= c_ij."""
    import ot

    m = len(cost)
    weights = np.full(m, 1 / m)
    plan, log = ot.emd(weights, weights, cost, numItermax=10**8, log=True)
    if log["warning"]:
        raise RuntimeError(f"POT: {log['warning']}")
    return Transport(-log["u"], log["v"], plan.argmax(1).astype(np.int64))
