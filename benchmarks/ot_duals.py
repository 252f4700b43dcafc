"""Exact optimal transport solves per second on one core: the matching and the dual variables of a cost matrix.

  OMP_NUM_THREADS=1 python benchmarks/ot_duals.py

A solve is timed from the cost matrix, made beforehand, to the matching and centred duals; so are all solvers.
own: dtrain's. pot: POT's network simplex, its duals and plan. scipy: linear_sum_assignment, prices for its matching
by a compiled Bellman-Ford, and the duals from them like dtrain's. highs: Eq. 14 as a linear programme; at m <= 256.
They take turns on the same matrices, after one that warms up. Noises are standard normal, codes ten clusters.
rate: own solves/s. ratio.<solver>_m<m>: the median of how many times as long it takes as own; the less of both d.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye_array, hstack, kron

from dtrain.losses import assignment
from dtrain.losses.ot import Floats, Indices, half_squared_distances, transport

REPEATS = {64: 200, 128: 100, 256: 40, 512: 15, 1024: 7}
HIGHS = {64: 3, 128: 3, 256: 2}
Solve = Callable[[Floats], tuple[Floats, Floats]]


@numba.njit(nogil=True)
def prices(cost: Floats, match: Indices) -> Floats:
    """Right prices for an optimal matching: phi_k <= phi_i + c[i, s_k] - c[k, s_k], relaxed until it holds."""
    m = len(match)
    phi, news = np.zeros(m), np.ones(m, np.bool_)
    own = np.array([cost[k, match[k]] for k in range(m)])
    while news.any():
        for i in range(m):
            if news[i]:
                news[i] = False
                for k in range(m):
                    bound = phi[i] + cost[i, match[k]] - own[k]
                    if bound < phi[k] - 1e-12:
                        phi[k] = bound
                        news[k] = True
    v = np.empty(m)
    v[match] = phi + own
    return v


def scipy(cost: Floats) -> tuple[Floats, Floats]:
    match = linear_sum_assignment(cost)[1]
    low, high, _ = assignment.duals(cost, match, prices(cost, match))
    phi = (low + high) / 2
    psi = np.empty_like(phi)
    psi[match] = phi + cost[np.arange(len(cost)), match]
    centre = (phi.mean() + psi.mean()) / 2
    return phi - centre, psi - centre


def highs(cost: Floats) -> tuple[Floats, Floats]:
    m = len(cost)
    ones, unit = np.ones((m, 1)), eye_array(m)
    rows = kron(unit, -ones).tocsr(), kron(ones, unit).tocsr()
    weights = np.r_[np.full(m, 1 / m), np.full(m, -1 / m)]
    bounds = [(0, 0)] + [(None, None)] * (2 * m - 1)
    solved = linprog(weights, hstack(rows), cost.ravel(), bounds=bounds, method="highs")
    phi, psi = solved.x[:m], solved.x[m:]
    centre = (phi.mean() + psi.mean()) / 2
    return phi - centre, psi - centre


SOLVERS: dict[str, Solve] = {
    "own": lambda cost: transport(cost)[:2],
    "pot": lambda cost: transport(cost, "pot")[:2],
    "scipy": scipy,
    "highs": highs,
}


def matrix(m: int, d: int, rng: np.random.Generator) -> Floats:
    centres = rng.normal(size=(10, d))
    codes = centres[rng.integers(10, size=m)] + 0.35 * rng.normal(size=(m, d))
    return half_squared_distances(rng.normal(size=(m, d)), codes)


def measure(m: int, d: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every solver on every matrix; AssertionError where a value is not the optimum."""
    rng = np.random.default_rng(m + d)
    times: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for repeat in range(repeats + 1):
        cost = matrix(m, d, rng)
        rows, columns = linear_sum_assignment(cost)
        best = cost[rows, columns].mean()
        for name in sorted(SOLVERS, reverse=repeat % 2 == 0):
            if name == "highs" and repeat > HIGHS.get(m, -1):
                continue
            begin = time.perf_counter()
            phi, psi = SOLVERS[name](cost)
            if repeat:
                times[name].append(time.perf_counter() - begin)
            assert abs(psi.mean() - phi.mean() - best) <= 1e-9 * best, (name, m, d)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(REPEATS), choices=list(REPEATS))
    arguments = parser.parse_args()
    rate: dict[str, float] = {}
    ratio: dict[str, float] = {}
    print(f"{'m':>5} {'d':>4} " + " ".join(f"{name + ' ms':>10}" for name in SOLVERS) + "   (medians)")
    for m in arguments.sizes:
        for d in (10, 100):
            times = measure(m, d, REPEATS[m])
            medians = {name: statistics.median(of) * 1e3 for name, of in times.items() if of}
            print(f"{m:5} {d:4} " + " ".join(f"{medians[n]:10.3f}" if n in medians else " " * 10 for n in SOLVERS))
            rate[f"m{m}_d{d}"] = round(1e3 / medians["own"], 1)
            for name in set(medians) - {"own"}:
                pairs = zip(times[name], times["own"], strict=False)  # highs: the first few
                value = round(statistics.median(other / own for other, own in pairs), 2)
                key = f"{name}_m{m}"
                ratio[key] = min(value, ratio.get(key, value))
    print(json.dumps({"ratio": dict(sorted(ratio.items())), "rate": rate}))


if __name__ == "__main__":
    main()
