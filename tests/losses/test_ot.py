"""Exact duals: feasible, without a gap, centred, with the optimal matching, also on degenerate inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

import dtrain.losses.ot
from dtrain.losses import assignment
from dtrain.losses.ot import Floats, Indices, Transport, half_squared_distances, transport

SIZES = [(1, 3), (2, 1), (7, 2), (64, 10), (256, 10), (200, 100)]


def points(m: int, d: int, seed: int) -> tuple[Floats, Floats]:
    """Standard normal noises [m, d] and codes [m, d] in ten clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, d))
    return rng.normal(size=(m, d)), centres[rng.integers(10, size=m)] + 0.35 * rng.normal(size=(m, d))


def costs(m: int, d: int, seed: int) -> Floats:
    return half_squared_distances(*points(m, d, seed))


def reduced(cost: Floats, phi: Floats, psi: Floats) -> Floats:
    """phi_i + c_ij - psi_j: the constraints' slack, and what Eq. 17 minimises over j."""
    return cost + phi[:, None] - psi


def check(cost: Floats, solved: Transport) -> None:
    """All that an exact solution has to be; the costs' size is the measure of every error."""
    phi, psi, match = solved
    m, scale = len(cost), max(float(np.abs(cost).max()), 1e-300)
    assert phi.dtype == psi.dtype == np.float64
    assert match.dtype == np.int64
    assert sorted(match) == list(range(m))
    slack = reduced(cost, phi, psi) / scale
    assert slack.min() >= -1e-9
    assert np.abs(slack[np.arange(m), match]).max() <= 1e-9
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns].mean()
    assert cost[np.arange(m), match].mean() == pytest.approx(best, rel=1e-9, abs=1e-12 * scale)
    assert psi.mean() - phi.mean() == pytest.approx(best, rel=1e-9, abs=1e-12 * scale)
    assert abs(phi.sum() + psi.sum()) <= 1e-12 * m * scale


@pytest.mark.parametrize("solver", ["lapjv", "pot"])
@pytest.mark.parametrize(("m", "d"), SIZES)
def test_the_duals_are_feasible_and_have_the_value_of_the_best_matching(m: int, d: int, solver: str) -> None:
    cost = costs(m, d, m)
    check(cost, transport(cost, solver))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 12), d=st.integers(1, 4), grid=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_points_on_a_grid_of_ties_are_solved_too(m: int, d: int, grid: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(grid, size=(2, m, d))  # grid 1: all points are equal
    cost = half_squared_distances(x, y)
    check(cost, transport(cost))


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 12), size=st.sampled_from([1e-200, 1e-9, 1.0, 1e9, 1e200]), seed=st.integers(0, 10**6))
def test_any_finite_costs_are_solved_negative_ones_too(m: int, size: float, seed: int) -> None:
    cost = size * np.random.default_rng(seed).normal(size=(m, m))
    check(cost, transport(cost))


@pytest.mark.parametrize("solver", ["lapjv", "pot"])
def test_duplicates_and_equal_points_are_solved(solver: str) -> None:
    x, y = points(40, 3, 0)
    for cost in (
        half_squared_distances(np.repeat(x[:8], 5, 0), np.repeat(y[:4], 10, 0)),
        half_squared_distances(x, x),
        half_squared_distances(np.repeat(x[:1], 40, 0), np.repeat(y[:1], 40, 0)),
        np.zeros((40, 40)),
    ):
        check(cost, transport(cost, solver))  # type: ignore[arg-type]


def test_a_common_shift_changes_nothing() -> None:
    x, y = points(64, 5, 0)
    solved, far = transport(half_squared_distances(x, y)), transport(half_squared_distances(x + 1e5, y + 1e5))
    assert np.array_equal(solved.match, far.match)
    np.testing.assert_allclose(far.phi, solved.phi, atol=1e-8)
    np.testing.assert_allclose(far.psi, solved.psi, atol=1e-8)


def test_a_shift_of_the_codes_alone_keeps_the_matching_and_moves_the_duals_by_the_same_map() -> None:
    x, y = points(64, 5, 0)
    shift = np.arange(5.0)
    solved, moved = transport(half_squared_distances(x, y)), transport(half_squared_distances(x, y + shift))
    assert np.array_equal(solved.match, moved.match)
    # 1/2 |x - y - s|^2 = 1/2 |x - y|^2 - s.x + s.y + 1/2 |s|^2: the duals shift by s.x and s.y, up to a constant.
    change = moved.phi - solved.phi - x @ shift
    np.testing.assert_allclose(change, change.mean(), atol=1e-9)


def test_half_squared_distances_equal_the_loop_over_pairs() -> None:
    x, y = points(9, 4, 0)
    loop = [[0.5 * sum((a - b) ** 2) for b in y] for a in x]
    for shift in (0.0, 1e4):
        np.testing.assert_allclose(half_squared_distances(x + shift, y + shift), loop, rtol=1e-10)
    assert half_squared_distances(x.astype(np.float32), y).dtype == np.float64
    assert half_squared_distances(x, x).min() == 0


def test_the_solvers_agree_in_value() -> None:
    for m, d in SIZES:
        cost = costs(m, d, 1)
        own, pot = transport(cost), transport(cost, "pot")
        assert own.psi.mean() - own.phi.mean() == pytest.approx(pot.psi.mean() - pot.phi.mean(), rel=1e-9)


def linear_programme(cost: Floats) -> tuple[Floats, Floats]:
    """Eq. 14 as it is written, by HiGHS's simplex: a vertex of the optimal duals."""
    m = len(cost)
    ones = np.eye(m)
    rows = np.hstack([-np.repeat(ones, m, 0), np.tile(ones, (m, 1))])  # psi_j - phi_i
    weights = np.r_[np.full(m, 1 / m), np.full(m, -1 / m)]
    solved = linprog(weights, rows, cost.ravel(), bounds=[(0, 0)] + [(None, None)] * (2 * m - 1), method="highs")
    assert solved.status == 0
    return solved.x[:m], solved.x[m:]


@pytest.mark.parametrize(("m", "d"), [(2, 1), (8, 2), (24, 10)])
def test_the_value_is_the_linear_programmes(m: int, d: int) -> None:
    cost = costs(m, d, 2)
    phi, psi = linear_programme(cost)
    solved = transport(cost)
    assert solved.psi.mean() - solved.phi.mean() == pytest.approx(psi.mean() - phi.mean(), rel=1e-9)


def argmin_agrees(cost: Floats, phi: Floats, psi: Floats, match: Indices) -> float:
    """The share of rows where Eq. 17's argmin is the matching."""
    return float((reduced(cost, phi, psi).argmin(1) == match).mean())


@pytest.mark.parametrize("m", [64, 256])
def test_the_matching_attains_the_minimum_where_the_argmin_is_decided_by_rounding(m: int) -> None:
    """Eq. 17: sigma is the matching; at a vertex of the duals a third of the rows tie, between the vertices fewer."""
    cost = costs(m, 10, 0)
    solved = transport(cost)
    vertex = transport(cost, "pot")
    assert np.array_equal(vertex.match, solved.match)
    high = assignment.duals(cost, *assignment.solve(cost))[1]
    psi = np.empty(m)
    psi[solved.match] = high + cost[np.arange(m), solved.match]
    for phi, psi_ in [solved[:2], vertex[:2], (high, psi)]:
        slack = reduced(cost, phi, psi_)
        own = slack[np.arange(m), solved.match]
        assert np.abs(own).max() <= 1e-10  # 0, the least a slack can be
        assert (own - slack.min(1)).max() <= 1e-10
    at_vertices = [argmin_agrees(cost, *vertex), argmin_agrees(cost, high, psi, solved.match)]
    assert max(at_vertices) < 0.8
    assert argmin_agrees(cost, *solved) > max(at_vertices)


def test_the_linear_programmes_argmin_is_not_the_matching_either() -> None:
    agree = [argmin_agrees(c, *linear_programme(c), transport(c).match) for c in (costs(24, 10, s) for s in range(5))]
    assert np.mean(agree) < 0.85


def test_the_duals_lie_halfway_between_the_lowest_and_the_highest() -> None:
    m = 48
    cost = costs(m, 10, 0)
    solved = transport(cost)
    c = cost[:, solved.match]
    paths = c - c.diagonal()  # the longest step from phi_i to phi_k, and Floyd and Warshall's shortest paths of such
    for k in range(m):
        paths = np.minimum(paths, paths[:, [k]] + paths[[k], :])
    middle = (paths[0] - paths[:, 0]) / 2
    np.testing.assert_allclose(solved.phi - solved.phi[0], middle - middle[0], atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e300])
def test_costs_that_are_not_finite_are_refused(bad: float) -> None:
    cost = costs(5, 2, 0)
    cost[3, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        transport(cost)


@pytest.mark.parametrize("shape", [(0, 0), (3, 4), (4,), (2, 2, 2)])
def test_costs_that_are_no_square_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square and not empty"):
        transport(np.ones(shape))


def test_any_kind_of_array_is_taken_and_none_is_changed() -> None:
    cost = np.random.default_rng(0).integers(9, size=(6, 6)).astype(np.float32)
    kept = cost.copy()
    frozen = cost.astype(np.float64)
    frozen.flags.writeable = False
    solved = transport(frozen)
    for same in (cost, cost.tolist(), np.asfortranarray(frozen), np.repeat(frozen, 2, 1)[:, ::2]):
        assert all(np.array_equal(a, b) for a, b in zip(transport(same), solved, strict=True))
    assert np.array_equal(cost, kept)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="one of lapjv, pot"):
        transport(np.ones((2, 2)), "auction")  # type: ignore[arg-type]


def test_a_matching_that_is_not_optimal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = costs(20, 3, 0)
    match, prices = assignment.solve(cost)
    monkeypatch.setattr(assignment, "solve", lambda cost: (np.roll(match, 1), prices))
    with pytest.raises(RuntimeError, match="not right"):
        transport(cost)


@pytest.mark.parametrize("m", [2, 65, 150])
def test_costs_that_are_hard_for_an_auction_or_for_paths_are_solved(m: int) -> None:
    i = np.arange(1.0, m + 1)
    outlier = costs(m, 3, 0)
    outlier[0, 0] = 1e12
    price_war = np.where(np.arange(m)[:, None] < m - 1, np.minimum(i - 1, 1) * 1e6, 0.0)  # all want column 0
    for cost in (
        np.outer(i, i),
        np.outer(i, i[::-1]),
        np.abs(i[:, None] - i),
        outlier,
        price_war,
        1e6 + costs(m, 2, 1),
    ):
        check(cost, transport(cost))


def python(code: str, folder: Path, **environment: str) -> str:
    """What a fresh interpreter prints that finds the package in a folder."""
    environment = os.environ | environment | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder).stdout


def test_a_worker_starts_light() -> None:
    loaded = python(
        "import sys, dtrain.losses.ot as t; print({'torch', 'ot', 'numba', 'scipy'} & set(sys.modules));"
        "t.transport([[1, 0], [0, 1]]); print({'torch', 'ot'} & set(sys.modules))",
        Path(dtrain.__file__).parents[1],
    )
    assert loaded == "set()\nset()\n"


def test_the_kernels_compile_where_no_folder_can_be_written(tmp_path: Path) -> None:
    package = tmp_path / "dtrain" / "losses"
    package.mkdir(parents=True)
    (tmp_path / "file").touch()  # not even root makes a folder below a file
    for source in (dtrain, dtrain.losses, dtrain.losses.ot, assignment):
        path = Path(source.__file__ or "")
        copied = tmp_path / path.relative_to(Path(dtrain.__file__).parents[1])
        shutil.copy(path, copied)
        copied.parent.joinpath("__pycache__").touch()
    nowhere = {name: str(tmp_path / "file") for name in ("HOME", "XDG_CACHE_HOME")} | {"NUMBA_OPT": "0"}
    code = (
        "from dtrain.losses import assignment, ot; print(assignment.solve.stats.cache_path, assignment.__file__);"
        "print(ot.transport([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).match)"
    )
    cached, match = python(code, tmp_path, **nowhere).splitlines()
    assert cached == f"None {package / 'assignment.py'}"
    assert match == "[1 0 2]"
