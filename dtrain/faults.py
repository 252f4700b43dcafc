"""What can go wrong while training: a request to stop, a number that is not finite, a rank that does not arrive."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dtrain.config import ConfigError
from dtrain.world import PeerFailed, RanksMissing, World


class Interrupted(Exception):
    """All ranks agreed to stop."""


class Paused(Exception):
    """The run has come to where it was to pause, and is saved and evaluated."""


class NonFinite(ArithmeticError):
    """A loss term or a gradient is NaN or infinite; the message names update, term or group."""


class CheckpointError(Exception):
    """A checkpoint is damaged or belongs to another model; the message says which file or key."""


AGREED = (Interrupted, NonFinite, ConfigError, CheckpointError)  # what every rank finds, or none
REQUESTS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
COLLECTIVE = re.compile(
    r"gloo|nccl|store|timed? ?out|pair closure|by peer|socket|broken pipe|connection (reset|closed|refused)",
    re.IGNORECASE,
)


def explain(error: BaseException, world: World, step: int) -> BaseException:
    """A failed collective as PeerFailed, with another rank's own error, or as RanksMissing, with those not arrived.

    ConfigError for an operation that trainer.deterministic does not allow. Any other error as it is; if it is this
    rank's alone, the others are told.
    """
    operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
    if isinstance(error, RuntimeError) and refused:
        return ConfigError(f"trainer.deterministic=true: this run needs {operation}, which is not; set it to false")
    if world.size == 1 or world.broken or isinstance(error, AGREED):
        return error
    network = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and COLLECTIVE.search(str(error)))
    if isinstance(error, torch.OutOfMemoryError) or not network:
        world.publish(f"{type(error).__name__}: {error}")
        return error
    world.broken = True
    try:
        missing = world.missing_ranks()
        world.failed()
    except RuntimeError:  # the store lives in rank 0, or in torchrun on its node
        missing = [0]
    if world.failure is not None:
        return PeerFailed(f"ended at step {step}, since another rank has failed: {world.failure}")
    names = ", ".join(map(str, missing)) or "none (all ranks failed together)"
    return RanksMissing(
        f"a collective failed at step {step}, at most trainer.timeout={world.timeout:g} s after it "
        f"began; ranks that did not arrive: {names}"
    )


class PeerWatch:
    """A thread that learns when another rank has failed by itself, and ends this process where it is stuck with it.

    gloo raises in the others once the failed one is gone; a kernel of NCCL waits for it for as long as its timeout.
    noted: told the message before the process ends.
    """

    EVERY, STUCK = 1.0, 20.0  # seconds between two looks; from a failure until this process must have ended by itself

    def __init__(self, world: World, noted: Callable[[str], None]) -> None:
        self.world, self.noted, self._over = world, noted, threading.Event()
        if world.size > 1:
            threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def close(self) -> None:
        """This process goes its own way from here on."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(self.EVERY, self.world.size / 200)):  # the store serves some hundreds a second
            try:
                failure = self.world.failed()
            except RuntimeError:  # the store is gone: what the main thread finds itself
                return
            if failure is not None:
                if not self._over.wait(self.STUCK):
                    message = f"ended, since another rank has failed: {failure}"
                    self.noted(message)
                    os.write(2, f"dtrain: rank {self.world.rank}: {message}\n".encode())
                    os._exit(1)
                return


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

    EVERY, LONGEST = 0.5, 64  # seconds between two votes, in the long run; steps at most
    AGAIN = 1.0  # seconds in which a second signal is the same request: torchrun passes on what the terminal has sent

    def __init__(self, world: World) -> None:
        self.world, self.requested, self._since = world, False, math.inf
        self._vote: tuple[Any, torch.Tensor] | None = None
        self._interval, self._skipped, self._voted = 1, 0, time.monotonic()
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
        """Whether any rank was asked by its last vote; to be called after every step.

        A vote overlaps the step after it. All ranks agree in it too after how many steps to vote again, some EVERY
        seconds later: a vote takes twice as many messages, one after the other, as there are ranks.
        """
        if self.world.size == 1:
            return self.requested
        decided = self._result()
        self._skipped += 1
        if self._skipped >= self._interval:
            self._begin_vote()
        return decided

    def _begin_vote(self) -> None:
        """The largest wish decides: a stop if one rank was asked, and the slowest rank's number of steps."""
        now = time.monotonic()
        pace = (now - self._voted) / max(self._skipped, 1)
        steps = min(self.LONGEST, max(1, int(self.EVERY / pace))) if pace > 0 else self.LONGEST
        flag = torch.tensor([int(self.requested), -steps])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.world.control, async_op=True)
        self._vote, self._voted, self._skipped = (work, flag), now, 0

    def poll(self) -> None:
        """Raises Interrupted once all ranks agree to stop. A vote at every call: all ranks call it equally often."""
        decided = self.requested if self.world.size == 1 else self._result()
        if decided:
            raise Interrupted
        if self.world.size > 1:
            self._begin_vote()

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
        asked, steps = flag.tolist()
        self._interval = -steps
        return bool(asked)
