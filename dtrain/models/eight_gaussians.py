"""The eight Gaussians of paper 003, Fig. 2: points of the plane in the place of codes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dtrain.data.problems import Mixture
from dtrain.losses.ot import Solver
from dtrain.models.base import Count, DataFacts, Dimension, Site, Stage, Weight
from dtrain.models.potential import Dual, PotentialModel


class EightGaussians(PotentialModel):
    """The potential alone, from N(0, I) to m points of eight Gaussians; it has no use for images.

    noises: resampled for every problem, as the paper's Algorithm 1 has them, or fixed, as its text can be read.
    """

    levels = 0

    def __init__(
        self,
        data: DataFacts,
        *,
        noises: Literal["fixed", "resampled"] = "resampled",
        hidden: Dimension = 512,
        depth: Dimension = 3,
        slope: Weight = 0.0,
        problem_size: Dimension = 256,
        lambda_gradient: Weight = 0.0,
        shift_invariant: bool = False,
        dual: Dual = "batch",
        workers: Count = 1,
        solver: Solver = "lapjv",
    ) -> None:
        super().__init__(
            dim=2, hidden=hidden, depth=depth, slope=slope, problem_size=problem_size,
            lambda_gradient=lambda_gradient, shift_invariant=shift_invariant, dual=dual,
            count=problem_size, workers=workers, solver=solver,
        )  # fmt: skip
        self.fixed = noises == "fixed"

    def stages(self) -> tuple[Stage, ...]:
        return self.transport_stages()

    def codes(self, site: Site) -> Tensor:
        return torch.from_numpy(self.draw(site)(0)[1])

    def draw(self, site: Site) -> Mixture:
        return Mixture(self.problem_size, site.seed, self.fixed)
