"""A potential D whose gradient carries noise to codes, trained on optimal transport duals (paper 003)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from dtrain.data.problems import Draw
from dtrain.data.transport import NoiseStream, TransportProblems
from dtrain.losses.ot import Solver
from dtrain.models.base import Algorithm, Prior, Site, Source, Stage, Terms, Update
from dtrain.nets.dual import DualWeights
from dtrain.nets.mlp import Potential
from dtrain.noise import Noise

Dual = Literal["batch", "semidiscrete"]


class PotentialModel(Algorithm):
    """D, its training on Eq. 18, and the map z + grad D(z) of Eq. 19.

    dual: batch solves Eq. 14 for every batch, exactly; semidiscrete first finds psi for all codes against the whole
    normal distribution, by stochastic ascent in a stage of its own (beyond the paper).
    shift_invariant: the regression ignores a constant per problem, which duals do not determine (beyond the paper).
    """

    replicated = frozenset({"potential"})  # its loss differentiates its gradient

    def __init__(
        self,
        *,
        dim: int,
        hidden: int,
        depth: int,
        slope: float,
        problem_size: int,
        lambda_gradient: float,
        shift_invariant: bool,
        dual: Dual,
        count: int | None,
        workers: int,
        solver: Solver,
    ) -> None:
        """count: of the codes, where they are a fixed set."""
        super().__init__()
        self.dim, self.problem_size, self.workers, self.solver = dim, problem_size, workers, solver
        self.lambda_gradient, self.with_gradient = lambda_gradient, lambda_gradient > 0
        self.dual, self.shift_invariant = dual, shift_invariant
        self.batch_coupled = shift_invariant
        self.batch_multiple = problem_size if dual == "batch" else 1
        self.potential = Potential(dim, hidden, depth, slope)
        self.groups = {"potential": ("potential",)}
        if dual == "semidiscrete":
            if count is None:
                raise ValueError("model.dual=semidiscrete needs to know how many training images there are")
            self.weights = DualWeights(count)
            self.groups["dual"] = ("weights",)

    @property
    def scale(self) -> Tensor:
        """What codes were divided by, and mapped noise is multiplied by: [1]."""
        return getattr(self.potential, "module", self.potential).scale

    def codes(self, site: Site) -> Tensor:
        """The fixed set of codes, scaled: float32 [N, d] on the CPU. To be called on every rank."""
        raise NotImplementedError

    def draw(self, site: Site) -> Draw:
        """The problems of the stage. To be called on every rank."""
        raise NotImplementedError

    def transport_stages(self) -> tuple[Stage, ...]:
        """The training of the potential, and what it needs."""
        if self.dual == "batch":
            return (Stage("potential", self.potential_step, source=self.problems),)
        return (
            Stage("dual", self.dual_step, source=self.noises),
            Stage("potential", self.semidiscrete_step, source=self.noises),
        )

    def problems(self, site: Site) -> Source:
        """Eq. 14, solved for batch after batch."""
        return TransportProblems(
            site, self.draw(site), size=self.problem_size, workers=self.workers, solver=self.solver
        )

    def noises(self, site: Site) -> Source:
        """Noise, and the codes at hand."""
        self.targets = self.codes(site).to(site.world.device)
        return NoiseStream(site, self.dim)

    def potential_step(self, batches: Iterator[tuple[Tensor, ...]], update: Update) -> None:
        """Algorithm 1, lines 5-7; the stream has done lines 2-4."""
        update("potential", self.potential_loss, *next(batches))

    def dual_step(self, batches: Iterator[Tensor], update: Update) -> None:
        update("dual", self.dual_loss, next(batches))

    def semidiscrete_step(self, batches: Iterator[Tensor], update: Update) -> None:
        x = next(batches)
        phi, target, problem = update.value(self.transport_of, x)
        update("potential", self.potential_loss, x, phi, target, problem)

    def potential_loss(self, x: Tensor, phi: Tensor, target: Tensor, problem: Tensor) -> Terms:
        """mean (D(x) - phi)^2 + lambda mean (|grad D(x)| - |target - x|)^2 (Eq. 18): x, target [B, d], phi [B].

        problem: [B], which of the batch's problems a row is of.
        """
        value, gradient = self.potential(x)
        error = value - phi
        if self.shift_invariant:
            error = error - self._means(error, problem)
        terms = {"potential": error.square().mean()}
        if self.with_gradient:
            excess = gradient.norm(dim=1) - (target - x).norm(dim=1)
            terms["gradient"] = self.lambda_gradient * excess.square().mean()
        return terms

    def dual_loss(self, x: Tensor) -> Terms:
        """mean phi - mean psi, which Eq. 14 minimises; the mean of psi is 0."""
        phi, _ = self.weights(x, self.targets)
        return {"dual": phi.mean()}

    def transport_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi, the target and the problem of noises against all codes."""
        phi, index = self.weights(x, self.targets)
        return phi, self.targets[index], torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _means(self, error: Tensor, problem: Tensor) -> Tensor:
        """Of each row's problem, over all ranks: [B]."""
        everywhere, of = self.gather(error), self.gather(problem)
        zeros = torch.zeros_like(everywhere)  # there are not more problems than rows
        sums, sizes = (zeros.index_add(0, of, v) for v in (everywhere, torch.ones_like(everywhere)))
        return (sums / sizes.clamp_min(1))[problem]

    def transported(self, z: Tensor) -> Tensor:
        """z + grad D(z) (Eq. 19), in the scale of the codes: [B, d] -> [B, d]."""
        _, gradient = self.potential(z)
        return self.scale * (z + gradient)

    def priors(self, condition: Tensor | None = None) -> dict[str, Prior]:
        return {"transport": self.sample_codes}

    def sample_codes(self, noise: Noise) -> Tensor:
        """Mapped noise."""
        return self.transported(noise.normal("prior", self.dim))
