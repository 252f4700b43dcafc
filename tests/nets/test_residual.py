"""The residual block's strided shortcut: that of a strided 1 x 1 convolution, without oneDNN's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import conv2d

from dtrain.nets.residual import Residual

NARROW = """
import torch
from dtrain.nets.residual import Residual

block = Residual(2, 4, 2).to(memory_format=torch.channels_last)
for _ in range(20):
    x = torch.randn(16, 2, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    block(x).square().sum().backward()
"""


@pytest.mark.parametrize("channels", [3, 8])
def test_the_shortcut_is_a_strided_convolution(channels: int) -> None:
    block, x = Residual(channels, 5, 2).double(), torch.randn(2, channels, 8, 8, dtype=torch.float64)
    shortcut = conv2d(x, block.shortcut.weight, block.shortcut.bias, stride=2)
    torch.testing.assert_close(block(x), torch.relu(block.body(x) + shortcut))


def test_few_channels_leave_the_heap_intact_where_there_is_avx2_alone() -> None:
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", NARROW], env=env, check=True, timeout=600)
