"""The global order: every sample once per epoch, for any world size, batch and start."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtrain.data.order import Order, positions
from dtrain.data.resident import PlacedOrder
from dtrain.data.transfer import Transfer


def read_by_ranks(count: int, world: int, batch: int, start: int, steps: int) -> np.ndarray:
    """Sample at each position start .. start + steps·batch, put together from what each rank reads."""
    found = np.full(steps * batch, -1, dtype=np.int64)
    for rank in range(world):
        order = Order(count, seed=7)
        for step in range(steps):
            at = positions(start + step * batch, batch, rank, world)
            assert (found[at - start] == -1).all()
            found[at - start] = order.indices(at)
    return found


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 60), world=st.integers(1, 9), per_rank=st.integers(1, 7), start=st.integers(0, 200))
def test_over_an_epoch_every_sample_comes_exactly_once_across_ranks(
    count: int, world: int, per_rank: int, start: int
) -> None:
    batch = world * per_rank
    steps = -(-2 * count // batch) + 1
    read = read_by_ranks(count, world, batch, start, steps)
    first_epoch_start = -(-start // count) * count - start
    epoch = read[first_epoch_start : first_epoch_start + count]
    assert sorted(epoch) == list(range(count))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 50), start=st.integers(0, 120), world=st.sampled_from([2, 3, 4, 8]))
def test_the_stream_does_not_know_the_world_size(count: int, start: int, world: int) -> None:
    many = read_by_ranks(count, world, 24, start, 4)
    assert np.array_equal(many, read_by_ranks(count, 1, 24, start, 4))


@pytest.mark.parametrize("world", [1, 2, 3, 16, 257, 1024, 4096])
def test_an_epoch_is_complete_at_any_world_size(world: int) -> None:
    count = 3 * world + 1
    order = Order(count, seed=1)
    read = np.empty(4 * world, dtype=np.int64)
    for step in range(4):
        for rank in range(world):
            at = positions(step * world, world, rank, world)
            read[at] = order.indices(at)
    assert np.array_equal(np.sort(read[:count]), np.arange(count))


def test_a_start_in_the_middle_continues_the_same_stream() -> None:
    whole = read_by_ranks(31, 2, 10, 0, 12)
    assert np.array_equal(read_by_ranks(31, 2, 10, 50, 7), whole[50:])


def test_epochs_and_seeds_differ() -> None:
    order = Order(100, seed=0)
    assert not np.array_equal(order.permutation(0), order.permutation(1))
    assert not np.array_equal(order.permutation(0), Order(100, seed=1).permutation(0))


def test_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="count=0"):
        Order(0)


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 50), start=st.integers(0, 120), world=st.sampled_from([1, 2, 3, 8]), rows=st.integers(1, 30)
)
def test_the_order_on_a_device_is_the_same(count: int, start: int, world: int, rows: int) -> None:
    for rank in range(world):
        order, placed = Order(count, seed=4), PlacedOrder(Order(count, seed=4), Transfer("cpu"))
        for step in range(4):
            at = positions(start + step * rows * world, rows * world, rank, world)
            places, indices = placed(at)
            assert np.array_equal(places, at) and np.array_equal(indices, order.indices(at))


def test_two_epochs_are_held_on_the_device() -> None:
    sent: list[int] = []

    class Counted(Transfer):
        def __call__(self, array: npt.NDArray[Any]) -> Tensor:
            sent.append(len(array))
            return super().__call__(array)

    placed = PlacedOrder(Order(10), Counted("cpu"))
    for step in range(10):
        placed(positions(4 * step, 4))
    assert sent == [10] * 4
