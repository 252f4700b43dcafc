"""Transport problems, each a function of its number: draws of noise and codes, and their exact solution.

Without torch: the processes that solve them start with this module.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dtrain.losses.ot import Solver, half_squared_distances, transport

Array = npt.NDArray[np.float32]
Draw = Callable[[int], tuple[Array, Array]]
"""The number of a problem -> m noises x and m codes y, both [m, d]."""


class Solved(NamedTuple):
    """noise [m, d], potential [m]: the exact dual phi there, target [m, d]: the code that each noise goes to."""

    noise: Array
    potential: Array
    target: Array


def generator(seed: int, problem: int) -> np.random.Generator:
    """The random numbers of one problem."""
    return np.random.Generator(np.random.Philox(key=[seed, problem]))


@dataclass(frozen=True)
class FromCodes:
    """m points from N(0, I) and m different ones of the codes [N, d] (Algorithm 1, lines 2-3)."""

    codes: Array
    size: int
    seed: int

    def __call__(self, problem: int) -> tuple[Array, Array]:
        rng = generator(self.seed, problem)
        noise = rng.standard_normal((self.size, self.codes.shape[1]), dtype=np.float32)
        return noise, self.codes[rng.choice(len(self.codes), self.size, replace=False)]


CENTRES = 10 * np.array([(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4])
"""Of the eight Gaussians, each N(centre, I): [8, 2]."""


@dataclass(frozen=True)
class Mixture:
    """m noises from N(0, I), and always the same m points of the eight Gaussians, as many of each.

    fixed: also always the same noises, so that all problems are one.
    """

    size: int
    seed: int
    fixed: bool

    def __call__(self, problem: int) -> tuple[Array, Array]:
        rngs = generator(self.seed, 0), generator(self.seed, 1 if self.fixed else 1 + problem)
        spread, noise = (rng.standard_normal((self.size, 2), dtype=np.float32) for rng in rngs)
        return noise, CENTRES[np.arange(self.size) % len(CENTRES)].astype(np.float32) + spread


def solve(draw: Draw, solver: Solver, problem: int) -> Solved:
    """The problem of this number, exactly: Eq. 14 and the matching of Eq. 17."""
    noise, codes = draw(problem)
    found = transport(half_squared_distances(noise, codes), solver)
    return Solved(noise, found.phi.astype(np.float32), codes[found.match])


_task: list[tuple[Draw, Solver]] = []  # of a worker process


def begin_worker(draw: Draw, solver: Solver, parent: int) -> None:
    """A worker outlives no parent, and leaves signals to it: its parent ends it when it has saved."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    _task[:] = [(draw, solver)]


def solve_in_worker(problem: int) -> Solved:
    """Of the task that the worker began with."""
    return solve(*_task[0], problem)
