"""Synchronised batch norm on any device is batch norm of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dtrain.nets.batchnorm import SyncBatchNorm
from dtrain.world import start
from tests.processes import launch

SHAPES = {"rows": (12, 5), "images": (12, 5, 3, 2)}


def passes(kind: str, sync: bool) -> list[Tensor]:
    """Three training passes: output, input gradient, parameter gradients (this rank's share), running statistics."""
    world = start("cpu", timeout=60)
    norm: nn.Module = (nn.BatchNorm1d if kind == "rows" else nn.BatchNorm2d)(5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    if sync:
        norm = SyncBatchNorm.convert(norm, world.device)
    outputs = []
    for seed in range(3):
        x = 100 + torch.randn(SHAPES[kind], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        own = x[world.rank :: world.size].clone().requires_grad_()
        weights = torch.arange(x.numel(), dtype=torch.float64).view_as(x)[world.rank :: world.size]
        y = norm(own)
        (y.square() * weights).sum().backward()
        assert own.grad is not None
        outputs += [y.detach(), own.grad]
    return [*outputs, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("kind", SHAPES)
def test_statistics_gradients_and_running_averages_are_those_of_the_whole_batch(kind: str) -> None:
    expected = passes(kind, sync=False)
    ranks = launch(3, passes, kind, True)
    for i in range(6):
        whole = torch.empty_like(expected[i])
        for rank, seen in enumerate(ranks):
            whole[rank::3] = seen[i]
        torch.testing.assert_close(whole, expected[i])
    for i in (6, 7):  # parameter gradients add up over the ranks
        torch.testing.assert_close(sum(seen[i] for seen in ranks), expected[i])
    for i in (8, 9):
        for seen in ranks:
            torch.testing.assert_close(seen[i], expected[i])


def test_evaluation_uses_the_running_statistics() -> None:
    plain = nn.BatchNorm1d(4)
    plain(torch.randn(8, 4))
    x = torch.randn(3, 4)
    expected = plain.eval()(x)
    synced = SyncBatchNorm.convert(plain, torch.device("cpu"))
    assert isinstance(synced, SyncBatchNorm)
    torch.testing.assert_close(synced(x), expected)
