"""Batch norm over the batch of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """Batch norm of x [B, C, ...] over all ranks, with one collective forwards and one backwards.

    Returns y, the global mean and the (biased) variance. Every rank holds the same number of rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dims, shape = _axes(x)
        own_mean = x.mean(dims)
        own = torch.stack([own_mean, (x - own_mean.view(shape)).square().mean(dims)])
        every = own.new_empty(dist.get_world_size() * 2, own.shape[1])
        dist.all_gather_into_tensor(every, own)
        means, variances = every.view(-1, *own.shape).unbind(1)
        mean = means.mean(0)
        # Centred on every rank before they are combined: E[x^2] - E[x]^2 would cancel in float32.
        variance = variances.mean(0) + (means - mean).square().mean(0)
        scale = (variance + eps).rsqrt()
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normal * weight.view(shape) + bias.view(shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        dy, (normal, weight, scale) = grads[0], ctx.saved_tensors
        dims, shape = _axes(dy)
        sums = torch.stack([dy.sum(dims), (dy * normal).sum(dims)])
        means = sums / (dy.numel() // dy.shape[1] * dist.get_world_size())
        dist.all_reduce(means)
        dx = dy - means[0].view(shape) - normal * means[1].view(shape)
        return dx * (weight * scale).view(shape), sums[1], sums[0], None


class _NormaliseOnGpu(torch.autograd.Function):
    """The same by torch's kernels of nn.SyncBatchNorm, which moves the running statistics too, unless they are None.

    That class counts the rows of every rank, and the host waits three times a layer for their number, which is known.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        x, world, ctx.rows = _dense(x), dist.get_world_size(), x.numel() // x.shape[1]
        own = torch.cat(torch.batch_norm_stats(x, eps))
        every = own.new_empty(world * len(own))
        dist.all_gather_into_tensor(every, own)
        means, scales = every.view(world, 2, -1).unbind(1)
        counts = torch.full((world,), ctx.rows, dtype=own.dtype, device=own.device)
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, scale)
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, (x, weight, mean, scale) = _dense(grads[0]), ctx.saved_tensors
        dy_sum, product_sum, dweight, dbias = torch.batch_norm_backward_reduce(
            dy, x, mean, scale, weight, True, True, True
        )
        sums = torch.cat([dy_sum, product_sum])
        dist.all_reduce(sums)
        dy_sum, product_sum = sums.chunk(2)
        counts = torch.full((dist.get_world_size(),), ctx.rows, dtype=torch.int32, device=dy.device)
        dx = torch.batch_norm_backward_elemt(dy, x, mean, scale, weight, dy_sum, product_sum, counts)
        return dx, dweight, dbias, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    return x if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions to reduce, and the shape that broadcasts a [C] vector over x."""
    return [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The network's batch norms that have running statistics.

    Not by track_running_stats: that is off while the statistics are held.
    """
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class SyncBatchNorm(_BatchNorm):
    """nn.BatchNorm with the statistics of the global batch; every process must hold equally many rows.

    torch's own nn.SyncBatchNorm refuses CPU tensors, and waits for the host on GPUs.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs [B, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        if input.is_cuda:
            return self._on_gpu(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        weight = self.weight if self.affine else x.new_ones(x.shape[1])
        bias = self.bias if self.affine else x.new_zeros(x.shape[1])
        y, mean, variance = _Normalise.apply(x, weight, bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance, x.numel() // x.shape[1] * dist.get_world_size())
        return y.to(input.dtype)

    def _on_gpu(self, input: Tensor) -> Tensor:
        if not self.affine or self.momentum is None:
            raise ValueError("on GPUs a synchronised batch norm has weights and a momentum")
        tracked = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return _NormaliseOnGpu.apply(input, self.weight, self.bias, *tracked, self.momentum, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)

    @classmethod
    def convert(cls, net: nn.Module) -> nn.Module:
        """The network with each of its batch norms replaced by one that synchronises, sharing its parameters."""
        for name, child in net.named_children():
            setattr(net, name, cls.convert(child))
        if not isinstance(net, _BatchNorm):
            return net
        synced = cls(
            net.num_features, net.eps, net.momentum, net.affine, net.track_running_stats,
            device=net.running_mean.device if net.running_mean is not None else None,
        )  # fmt: skip
        synced.__dict__.update(
            {k: v for k, v in net.__dict__.items() if k in ("_parameters", "_buffers", "training")}
        )
        return synced
