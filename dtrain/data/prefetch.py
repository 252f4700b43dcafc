"""An iterator worked off ahead of its consumer by one thread that never outlives it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yields what `source` yields. At most `depth` items exist at a time, the one the consumer holds included, so a
    source may write into a ring of `depth` buffers.

    What the source raises is raised here, in its place in the stream. Closing or abandoning the generator stops
    the thread and waits for it.
    """
    queue: SimpleQueue[object] = SimpleQueue()
    room, stop = Semaphore(depth), Event()

    def work() -> None:
        try:
            while room.acquire() and not stop.is_set():
                queue.put((next(source),))
        except StopIteration:
            queue.put(_END)
        except BaseException as error:  # the consumer raises it: a thread that dies silently would be a hang
            queue.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, tuple)
            yield item[0]
            del item  # the source may reuse its memory from here on
            room.release()
    finally:
        stop.set()
        room.release()
        thread.join()
