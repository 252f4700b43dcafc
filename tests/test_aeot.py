"""AE-OT: Eq. 18 and 19, the stream of solved problems, the semidiscrete potential, and both stages through a run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtrain.build import build_algorithm
from dtrain.config import ConfigError
from dtrain.data.problems import CENTRES, FromCodes, Mixture, solve
from dtrain.data.transport import TransportProblems
from dtrain.evaluate.transport import _eight, wasserstein
from dtrain.losses.ot import half_squared_distances, transport
from dtrain.models.aeot import AEOT
from dtrain.models.base import DataFacts
from dtrain.models.eight_gaussians import EightGaussians
from dtrain.nets.dual import DualWeights
from dtrain.world import World
from tests.harness import difference, make_config, site_of, train
from tests.processes import launch

FACTS = DataFacts((1, 24, 24), images=96)


def small(**options: Any) -> EightGaussians:
    """A potential of the plane in float64."""
    torch.manual_seed(0)
    made = EightGaussians(FACTS, hidden=8, depth=2, slope=0.2, workers=0, **options)
    return made.double()  # type: ignore[return-value]


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noises, their potentials and targets."""
    rng = np.random.default_rng(seed)
    x, phi, target = rng.normal(size=(count, 2)), rng.normal(size=count), rng.normal(size=(count, 2))
    return torch.from_numpy(x), torch.from_numpy(phi), torch.from_numpy(target)


def test_the_loss_is_that_of_eq_18() -> None:
    model = small(lambda_gradient=0.3)
    x, phi, target = rows(6)
    terms = model.potential_loss(x, phi, target, torch.zeros(6, dtype=torch.int64))
    value = gradient = 0.0
    for i in range(6):
        point = x[i].clone().requires_grad_()
        d = model.potential.body(point[None])[0, 0]
        (slope,) = torch.autograd.grad(d, point)
        value += float((d - phi[i]).detach()) ** 2 / 6
        gradient += (float(slope.norm()) - float((target[i] - x[i]).norm())) ** 2 / 6
    assert float(terms["potential"].detach()) == pytest.approx(value)
    assert float(terms["gradient"].detach()) == pytest.approx(0.3 * gradient)


def test_the_map_follows_the_gradient_of_eq_19() -> None:
    """D(x) = <b, x> + a |x|^2 / 2 maps x to (1 + a) x + b."""

    class Quadratic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ torch.tensor([2.0, -1.0], dtype=x.dtype) + 0.75 * x.square().sum(1))[:, None]

    model = small()
    model.potential.body = Quadratic()
    x, _, _ = rows(5)
    torch.testing.assert_close(model.transported(x), 2.5 * x + torch.tensor([2.0, -1.0]).double())
    model.scale.fill_(3.0)
    torch.testing.assert_close(model.transported(x), 3 * (2.5 * x + torch.tensor([2.0, -1.0]).double()))


def test_shift_invariance_ignores_a_constant_of_each_problem_and_nothing_else() -> None:
    model, plain = small(shift_invariant=True), small()
    x, phi, target = rows(6)
    problem = torch.tensor([0, 1, 2, 0, 1, 2])
    shift = torch.tensor([5.0, -3.0, 0.5]).double()[problem]
    loss = model.potential_loss(x, phi, target, problem)["potential"]
    torch.testing.assert_close(model.potential_loss(x, phi + shift, target, problem)["potential"], loss)
    assert not torch.isclose(plain.potential_loss(x, phi + shift, target, problem)["potential"], loss)
    moved = phi.clone()
    moved[0] += 1
    assert not torch.isclose(model.potential_loss(x, moved, target, problem)["potential"], loss)
    best = phi - model.potential(x)[0].detach()  # the least possible error lets each problem have its mean
    expected = sum(best[problem == p].var(correction=0) * (problem == p).double().mean() for p in range(3))
    torch.testing.assert_close(loss, expected)


def test_dividing_the_codes_changes_no_plan() -> None:
    noise, codes = FromCodes(np.random.default_rng(0).normal(5, 7, (40, 3)).astype(np.float32), 40, 0)(0)
    match = transport(half_squared_distances(noise, codes)).match
    np.testing.assert_array_equal(match, transport(half_squared_distances(noise, codes / 6)).match)


def test_the_semidiscrete_loss_pulls_every_codes_share_to_one_over_n() -> None:
    codes = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (16, 2)))
    weights = DualWeights(16).double()
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(4000, 2)))
    phi, index = weights(x, codes)
    phi.mean().backward()
    share = index.bincount(minlength=16) / len(x)
    torch.testing.assert_close(weights.psi.grad, share.double() - 1 / 16)
    slow = (weights.psi - weights.psi.mean() - torch.cdist(x, codes).square() / 2).max(1)
    torch.testing.assert_close(phi, slow.values)
    assert torch.equal(index, slow.indices)
    single = DualWeights(16)(x.float(), codes.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DualWeights(16)(x.float(), codes.float())[0], single[0])


def test_ascent_on_the_semidiscrete_dual_finds_the_exact_one() -> None:
    """On noises that are a fixed set as large as the codes, Eq. 14's own optimum."""
    noise, codes = Mixture(64, 0, True)(0)
    x, y = torch.from_numpy(noise).double(), torch.from_numpy(codes).double()
    found = transport(half_squared_distances(noise, codes))
    weights = DualWeights(64).double()
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss = weights(x, y)[0].mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert float(loss) == pytest.approx(found.phi.mean() - found.psi.mean(), rel=1e-3)


PROBLEMS = Mixture(8, 3, False)


def stream(world: World, workers: int, start: int = 0, count: int = 2) -> Iterator[tuple[Tensor, ...]]:
    """Batches of `count` problems: this rank's rows."""
    site = site_of(world, batch_size=8 * count)
    source = TransportProblems(site, PROBLEMS, size=8, workers=workers, solver="lapjv")
    try:
        for item in source.batches(start * site.batch_size):
            yield item[world.rank :: world.size]
    finally:
        source.close()


def taken(batches: Iterator[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """All columns of the first batches."""
    return [column for _ in range(count) for column in next(batches)]


def test_the_number_of_workers_and_where_a_stream_begins_change_nothing() -> None:
    expected = taken(stream(World(), 0), 6)
    for workers in (1, 2):
        found = taken(stream(World(), workers), 6)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    later = taken(stream(World(), 1, start=4), 2)
    assert all(torch.equal(a, b) for a, b in zip(expected[16:], later, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_share_out_the_rows_of_every_problem(count: int) -> None:
    noise, phi, target, problem = next(stream(World(), 0, start=1, count=count))
    for p in range(count):
        whole = solve(PROBLEMS, "lapjv", count + p)
        of = problem == p
        np.testing.assert_array_equal(noise[of], whole.noise)
        np.testing.assert_array_equal(phi[of], whole.potential)
        np.testing.assert_array_equal(target[of], whole.target)
    parts = [next(stream(World(rank=r, size=2), 0, start=1, count=count)) for r in (0, 1)]
    for column, *halves in zip((noise, phi, target, problem), *parts, strict=True):
        assert torch.equal(torch.stack(halves, 1).flatten(0, 1), column)
    site = site_of(World(rank=1, size=2), batch_size=8 * count)
    mine = TransportProblems(site, PROBLEMS, size=8, workers=0, solver="lapjv").mine
    assert mine == ([1] if count == 2 else list(range(count))), "a rank solves what it needs"


def children() -> set[str]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    return set(found.split())


def test_a_dead_worker_is_an_error_and_no_hang() -> None:
    before = children()
    batches = stream(World(), 2)
    next(batches)
    for pid in children() - before:
        os.kill(int(pid), signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="a process that solves transport problems died"):
        taken(batches, 50)
    assert time.monotonic() - begin < 120


def test_workers_end_with_their_source() -> None:
    before = children()
    batches = stream(World(), 2)
    next(batches)
    assert len(children() - before) >= 2
    batches.close()  # type: ignore[attr-defined]
    assert not {p for p in children() - before if "spawn_main" in _command(p)}


def _command(pid: str) -> str:
    file = Path(f"/proc/{pid}/cmdline")
    return file.read_bytes().decode() if file.exists() else ""


def _stream_and_hang(file: Path) -> None:
    batches = stream(World(), 2)
    next(batches)
    file.write_text(" ".join(p for p in children() if "spawn_main" in _command(p)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_outlive_no_killed_training(tmp_path: Path) -> None:
    assert launch(1, _stream_and_hang, tmp_path / "workers", check=False) == ["died"]
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 2
    deadline = time.monotonic() + 120
    while any("spawn_main" in _command(p) for p in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any("spawn_main" in _command(p) for p in workers)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "options",
    [
        ("model.problem_size=16", "model.lambda_gradient=0.1"),
        ("model.problem_size=8", "model.shift_invariant=true"),
        ("model.problem_size=16", "model.shift_invariant=true"),
    ],
)
def test_two_processes_train_the_same_potential(strategy: str, options: tuple[str, ...]) -> None:
    expected, metrics = train(make_config("eight_gaussians", *options), 8)
    for weights, seen in launch(
        2, train, make_config("eight_gaussians", *options, f"trainer.strategy={strategy}"), 8
    ):
        assert difference(expected, weights) < 1e-8  # without a shift, the last bias has rounding for a gradient
        assert seen == pytest.approx(metrics, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("aeot", ("model.problem_size=12",), r"trainer\.batch_size=16: AEOT needs a multiple of 12"),
        ("aeot", ("trainer.batch_size=100",), r"model\.problem_size=100: the data has 96 training images"),
        ("eight_gaussians", ("model.shift_invariant=true", "trainer.micro_batches=2"), "couples the samples"),
        ("aeot", ("model.workers=-1",), r"model\.workers=-1: .*greater than or equal to 0"),
        ("aeot", ("model.solver=simplex",), r"model\.solver='simplex': input should be 'lapjv' or 'pot'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(
    model: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_algorithm(make_config(model, *overrides), FACTS)


def test_the_wasserstein_distance_is_pots() -> None:
    import ot

    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(mean, 1, (50, 3))) for mean in (0, 2))
    weights = np.full(50, 0.02)
    assert wasserstein(x, y) == pytest.approx(float(ot.emd2(weights, weights, ot.dist(x.numpy(), y.numpy()))) ** 0.5)


def test_the_numbers_of_the_eight_gaussians() -> None:
    points = np.repeat(CENTRES, [1, 1, 2, 2, 2, 2, 2, 8], axis=0)
    points[-1] *= 1.31  # 3.1 from its centre
    found = _eight(torch.from_numpy(points))
    assert found == pytest.approx({"within3": 0.95, "modes": 8.0, "mode_share/least": 0.05, "mode_share/most": 0.4})


def test_the_autoencoders_networks_are_those_of_the_other_image_models() -> None:
    """So that their runs can take the first stage's place."""
    aeot = AEOT(FACTS, latent_dim=3, width=4)
    wae = build_algorithm(make_config("wae_mmd"), FACTS)
    for name in ("encoder", "decoder"):
        ours, theirs = (m.get_submodule(name).state_dict() for m in (aeot, wae))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
