"""The prefetching thread: order, errors in their place, bounded lead, and no thread left."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from dtrain.data.prefetch import prefetch


def test_it_yields_what_the_source_yields_and_ends() -> None:
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))


def test_an_error_arrives_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the disk is gone")

    threads = threading.active_count()
    stream = prefetch(source(), 4)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert threading.active_count() == threads


def test_a_ring_of_depth_buffers_is_never_overwritten_while_held() -> None:
    depth = 3
    ring = [0] * depth

    def source() -> Iterator[tuple[int, int]]:
        for number in itertools.count():
            ring[number % depth] = number
            yield number % depth, number

    for slot, number in itertools.islice(prefetch(source(), depth), 300):
        if number % 50 == 0:
            time.sleep(0.005)  # lets the thread run as far ahead as it can
        assert ring[slot] == number


def test_abandoned_streams_leave_no_thread() -> None:
    threads = threading.active_count()
    for _ in range(50):
        stream = prefetch(itertools.count(), 2)
        next(stream)
        del stream
    assert threading.active_count() == threads
