"""What can go wrong while training: a request to stop, a number that is not finite, a rank that does not arrive."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dtrain.config import ConfigError
from dtrain.world import RanksMissing, World


class Interrupted(Exception):
    """All ranks agreed to stop."""


class Paused(Exception):
    """The run has come to where it was to pause, and is saved and evaluated."""


class NonFinite(ArithmeticError):
    """A loss term or a gradient is NaN or infinite; the message names update, term or group."""


class CheckpointError(Exception):
    """A checkpoint is damaged or belongs to another model; the message says which file or key."""


REQUESTS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
COLLECTIVE = re.compile(
    r"gloo|nccl|store|timed? ?out|pair closure|by peer|socket|broken pipe|connection (reset|closed|refused)",
    re.IGNORECASE,
)


def explain(error: BaseException, world: World, step: int) -> BaseException:
    """A failed collective as RanksMissing with the ranks that did not arrive; any other error as it is.

    ConfigError for an operation that trainer.deterministic does not allow.
    """
    operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
    if isinstance(error, RuntimeError) and refused:
        return ConfigError(f"trainer.deterministic=true: this run needs {operation}, which is not; set it to false")
    network = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and COLLECTIVE.search(str(error)))
    if world.size == 1 or not network:
        return error
    world.broken = True
    try:
        missing = world.missing_ranks()
    except RuntimeError:  # the store lives in rank 0, or in torchrun on its node
        missing = [0]
    names = ", ".join(map(str, missing)) or "none (all ranks failed together)"
    return RanksMissing(
        f"a collective failed at step {step}, at most trainer.timeout={world.timeout:g} s after it "
        f"began; ranks that did not arrive: {names}"
    )


@contextmanager
def sheltered() -> Iterator[None]:
    """Processes that start inside, such as compilers, do not hear the requests to stop; this one still does.

    A terminal, torchrun and SLURM send them to all processes of a run, and a compilation whose compiler ends fails.
    """
    _hear()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)  # this thread's alone, but processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _hear() -> None:
    """A thread that the signals can reach where the main thread blocks them."""
    threading.Thread(target=threading.Event().wait, name="signals", daemon=True).start()


class StopSignal:
    """SIGTERM, SIGUSR2, SIGINT and SIGHUP ask for a stop; all ranks agree on it at the same step boundary.

    A person's second Ctrl-C, or the second end of a terminal, ends this process at once.
    """

    AGAIN = 1.0  # seconds in which a second signal is the same request: torchrun passes on what the terminal has sent

    def __init__(self, world: World) -> None:
        self.world, self.requested, self._since = world, False, math.inf
        self._vote: tuple[Any, torch.Tensor] | None = None
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        by_hand, now = number in (signal.SIGINT, signal.SIGHUP), time.monotonic()
        if by_hand and now > self._since + self.AGAIN:
            os._exit(128 + number)
        if by_hand and not self.requested and self.world.main:
            os.write(2, b"stopping: saving first; press again to end at once\n")  # print is not for handlers
        self.requested = True
        self._since = min(self._since, now)

    def agreed(self) -> bool:
        """Whether any rank was asked by its last call; the vote overlaps the step between two calls."""
        if self.world.size == 1:
            return self.requested
        decided = self._result()
        flag = torch.tensor([int(self.requested)])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.world.control, async_op=True)
        self._vote = (work, flag)
        return decided

    def poll(self) -> None:
        """Raises Interrupted once all ranks agree to stop; every rank calls it equally often."""
        if self.agreed():
            raise Interrupted

    def drain(self) -> None:
        """Waits for the vote under way, so that the group can be left."""
        if self._vote is not None and not self.world.broken:
            self._result()

    def _result(self) -> bool:
        if self._vote is None:
            return False
        work, flag = self._vote
        self._vote = None
        work.wait()
        return bool(flag.item())
