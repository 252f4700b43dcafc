"""Batch norm over the batch of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _MeanOverRanks(torch.autograd.Function):
    """all_reduce mean, whose backward is the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _mean_over_ranks(grads[0])


def _mean_over_ranks(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x / dist.get_world_size()


class SyncBatchNorm(_BatchNorm):
    """nn.BatchNorm with the statistics of the global batch; every process must hold equally many rows.

    torch's own nn.SyncBatchNorm refuses CPU tensors; it is used on GPUs, this one everywhere else.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs [B, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        # Two reductions of centred values: E[x^2] - E[x]^2 would cancel in float32.
        mean = _MeanOverRanks.apply(x.mean(dims))
        centred = x - mean.view(shape)
        variance = _MeanOverRanks.apply(centred.square().mean(dims))
        self._track(mean, variance, x.numel() // x.shape[1] * dist.get_world_size())
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

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
    def convert(cls, net: nn.Module, device: torch.device) -> nn.Module:
        """The network with each of its batch norms replaced by one that synchronises, sharing its parameters."""
        if device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(net)
        for name, child in net.named_children():
            setattr(net, name, cls.convert(child, device))
        if not isinstance(net, _BatchNorm):
            return net
        synced = cls(
            net.num_features, net.eps, net.momentum, net.affine, net.track_running_stats,
            device=net.running_mean.device if net.running_mean is not None else None,
        )  # fmt: skip
        synced.__dict__.update({k: v for k, v in net.__dict__.items() if k in ("_parameters", "_buffers", "training")})
        return synced
