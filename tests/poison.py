"""Adversary with trouble at chosen positions of the stream: NaN in one term, or a rank that stops coming."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

import torch

from dtrain.data.batch import Batch
from dtrain.models.base import DataFacts, Terms
from tests.adversary import Adversary


class Poisoned(Adversary):
    """On the rank that reads one of these positions: nan_at: the term "pixels" is NaN; nan_gradient_at: the terms are
    finite and the gradients are NaN; hang_at: it sleeps; fail_at: its memory is over. puts: an operation without a
    deterministic kernel.
    """

    def __init__(
        self,
        data: DataFacts,
        *,
        nan_at: Sequence[int] = (),
        nan_gradient_at: Sequence[int] = (),
        hang_at: Sequence[int] = (),
        fail_at: Sequence[int] = (),
        puts: bool = False,
    ) -> None:
        super().__init__(data)
        self.puts = puts
        self.nan_at, self.hang_at = torch.tensor(list(nan_at)), torch.tensor(list(hang_at))
        self.fail_at = torch.tensor(list(fail_at))
        self.nan_gradient_at = torch.tensor(list(nan_gradient_at))

    def autoencoder_loss(self, batch: Batch) -> Terms:
        terms = super().autoencoder_loss(batch)
        if torch.isin(batch.noise.position, self.nan_at).any():
            terms["pixels"] = terms["pixels"] * torch.nan
        if torch.isin(batch.noise.position, self.nan_gradient_at).any():
            terms["fool"] = terms["fool"] + (terms["pixels"] * 0).sqrt()  # 0 times the infinite slope at 0
        if torch.isin(batch.noise.position, self.hang_at).any():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun ends it at once
            time.sleep(300)
        if torch.isin(batch.noise.position, self.fail_at).any():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.puts:
            torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))
        return terms
