"""The weights of the dual of semidiscrete optimal transport (AE-OT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COSTS = 1 << 24  # between noises and codes, held at a time


class DualWeights(nn.Module):
    """psi, one number for every code, of mean 0.

    forward(x [B, d], codes [N, d]) -> phi [B], the c-transform max_j psi_j - 1/2 |x - y_j|^2, which is the least phi
    that Eq. 14 allows; and the numbers of the codes that attain it, [B].
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # half precision would choose other codes
            offset = self.psi - self.psi.mean() - codes.square().sum(1) / 2
            parts = [torch.addmm(offset, rows, codes.T).max(1) for rows in x.split(max(1, COSTS // len(codes)))]
            phi, index = (torch.cat(column) for column in zip(*parts, strict=True))
            return phi - x.square().sum(1) / 2, index
