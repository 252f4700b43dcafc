"""Synchronised batch norm on any device is batch norm of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dtrain.nets.batchnorm import SyncBatchNorm
from dtrain.world import start
from tests.processes import launch

Tensors = tuple[Tensor, ...]


def on(x: Tensor, vector: Tensor) -> Tensor:
    """A [C] vector over x [B, C, ...]."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def over(x: Tensor) -> Tensor:
    """The sum of each channel: [C]."""
    return x.transpose(0, 1).flatten(1).sum(1)


def stats(x: Tensor, eps: float) -> Tensors:
    mean = over(x) / (x.numel() // x.shape[1])
    return mean, (over((x - on(x, mean)).square()) / (x.numel() // x.shape[1]) + eps).rsqrt()


def gather(
    x: Tensor, means: Tensor, scales: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    counts: Tensor,
) -> Tensors:  # fmt: skip
    n, each = counts.sum(), counts[:, None]
    mean = (means * each).sum(0) / n
    variance = ((scales**-2 - eps + (means - mean).square()) * each).sum(0) / n
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * n / (n - 1), momentum)
    return mean, (variance + eps).rsqrt()


def reduce(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, *flags: object) -> Tensors:
    product = over(dy * (x - on(x, mean)))
    return over(dy), product, product * scale, over(dy)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    dy_sum: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    n = counts.sum()
    centred = dy - on(x, dy_sum / n) - (x - on(x, mean)) * on(x, scale.square() * product / n)
    return centred * on(x, scale * weight)


def kernels() -> torch.library.Library:
    """What torch's kernels for GPUs compute, by their formulas, for the CPU; as long as the library lives."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("batch_norm_stats", stats)
    library.impl("batch_norm_gather_stats_with_counts", gather)
    library.impl(
        "batch_norm_elemt", lambda x, w, b, mean, scale, eps: (x - on(x, mean)) * on(x, scale * w) + on(x, b)
    )
    library.impl("batch_norm_backward_reduce", reduce)
    library.impl("batch_norm_backward_elemt", backward)
    return library


SHAPES = {"rows": (12, 5), "images": (12, 5, 3, 2)}


def passes(kind: str, sync: bool, as_on_gpu: bool = False) -> list[Tensor]:
    """Three training passes: output, input gradient, parameter gradients (this rank's share), running statistics."""
    world = start("cpu", timeout=60)
    norm: nn.Module = (nn.BatchNorm1d if kind == "rows" else nn.BatchNorm2d)(5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    if sync:
        norm = SyncBatchNorm.convert(norm)
    if as_on_gpu:
        library, norm.forward = kernels(), norm._on_gpu  # noqa: F841  # type: ignore[method-assign]
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


@pytest.mark.parametrize("as_on_gpu", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_statistics_gradients_and_running_averages_are_those_of_the_whole_batch(kind: str, as_on_gpu: bool) -> None:
    expected = passes(kind, sync=False)
    ranks = launch(3, passes, kind, True, as_on_gpu)
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
    synced = SyncBatchNorm.convert(plain)
    assert isinstance(synced, SyncBatchNorm)
    torch.testing.assert_close(synced(x), expected)
