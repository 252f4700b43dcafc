"""Streams of solved transport problems and of noise: what a potential is trained on in place of images."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dtrain.data.problems import Draw, Solved, begin_worker, solve, solve_in_worker
from dtrain.data.transfer import Transfer
from dtrain.losses.ot import Solver
from dtrain.noise import Noise

if TYPE_CHECKING:
    from dtrain.models.base import Site

AHEAD = 4  # global batches that are solved, or being solved, before they are asked for


@dataclass(frozen=True)
class Problems:
    """A global batch: row r is row r // P of problem r % P, so that ranks share out whole problems where they can.

    results: of the problems that this rank's rows belong to, waited for when the rows are taken.
    """

    results: Mapping[int, Callable[[], Solved]]
    count: int
    size: int
    transfer: Transfer

    def __getitem__(self, rows: slice) -> tuple[Tensor, ...]:
        """noise [B, d], potential [B], target [B, d], and the problem in the batch [B] of each row."""
        member, problem = np.divmod(np.arange(self.count * self.size)[rows], self.count)
        solved = {p: result() for p, result in self.results.items()}
        columns = []
        for example in zip(*solved.values(), strict=True):  # the noises of all problems, then their potentials, …
            column = np.empty((len(member), *example[0].shape[1:]), dtype=example[0].dtype)
            for p, part in zip(solved, example, strict=True):
                column[problem == p] = part[member[problem == p]]
            columns.append(column)
        return tuple(self.transfer(column) for column in (*columns, problem))


class TransportProblems:
    """An endless source of solved problems of m rows; problem k of the stage is the same for any number of ranks.

    workers: processes that draw and solve ahead of the training step; 0 solves when asked. Their number changes no
    result. RuntimeError where a worker dies.
    """

    def __init__(self, site: Site, draw: Draw, *, size: int, workers: int, solver: Solver) -> None:
        self.draw, self.solver, self.size, self.batch_size, self.world = (
            draw,
            solver,
            size,
            site.batch_size,
            site.world,
        )
        self.count, self.transfer = self.batch_size // size, Transfer(site.world.device)
        rows = range(self.world.rank, self.batch_size, self.world.size)
        self.mine = sorted({row % self.count for row in rows})
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            self._pool = ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=begin_worker, initargs=(draw, solver, os.getpid())
            )

    def batches(self, start: int) -> Iterator[Problems]:
        ahead: deque[dict[int, Callable[[], Solved]]] = deque()
        for first in itertools.count(start // self.batch_size * self.count, self.count):
            ahead.append({p: self._begin(first + p) for p in self.mine})
            if len(ahead) > AHEAD:
                yield Problems(ahead.popleft(), self.count, self.size, self.transfer)

    def _begin(self, problem: int) -> Callable[[], Solved]:
        """Has the problem solved; what waits for its solution."""
        if self._pool is None:
            return partial(solve, self.draw, self.solver, problem)
        with _explained():
            return partial(_result, self._pool.submit(solve_in_worker, problem))

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Solved]) -> Solved:
    with _explained():
        return future.result()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as e:
        raise RuntimeError(
            "a process that solves transport problems died (killed, or out of memory?): the same command continues "
            "from the last checkpoint; model.workers=0 solves them in the training process"
        ) from e


class NoiseStream:
    """An endless source of N(0, I): [B, d], a function of the position."""

    def __init__(self, site: Site, dim: int) -> None:
        self.site, self.dim = site, dim

    def batches(self, start: int) -> Iterator[Tensor]:
        size, device = self.site.batch_size, self.site.world.device
        for first in itertools.count(start, size):
            yield Noise.of(size, self.site.seed, first, device).normal("transport", self.dim)

    def close(self) -> None:
        """Nothing to free."""
