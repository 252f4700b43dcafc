"""Every loader delivers the same batches, bit for bit, and cleans up after itself."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.data.batch import Batch
from dtrain.data.build import Loader, build_loader
from dtrain.data.order import Order, positions
from dtrain.data.resident import ResidentLoader
from dtrain.data.shards import Split, open_split
from tests.data.backends import BACKENDS, backends, needs


def built(split: Split, options: dict[str, Any], batch_size: int = 24, **more: Any) -> Loader:
    return build_loader(split=split, batch_size=batch_size, value_range=(-1.0, 1.0), **{**options, **more})


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.noise.position, other.noise.position) and one.noise.seed == other.noise.seed
    for name in ("labels", "attributes", "embeddings"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("world", [1, 2, 4])
@backends("mapped", "ffcv", "dali", "dali-tar")
def test_two_epochs_are_those_of_resident_at_any_world_size(
    colour: Split, options: dict[str, Any], world: int
) -> None:
    start, steps = 24 * 5, 17  # from the middle of an epoch over two ends of epochs: 203 images
    for rank in range(world):
        common: dict[str, Any] = {"rank": rank, "world": world, "seed": 3, "flip": True}
        reference = built(colour, BACKENDS["resident"][0], **common).batches(start)
        stream = built(colour, options, **common).batches(start)
        for _ in range(steps):
            assert_equal(next(stream), next(reference))


@pytest.mark.parametrize("world", [1, 2])
def test_what_lies_on_a_gpu_is_read_in_the_same_order(colour: Split, world: int) -> None:
    for rank in range(world):
        common: dict[str, Any] = {"rank": rank, "world": world, "seed": 3, "flip": True}
        reference = built(colour, BACKENDS["resident"][0], **common).batches(120)
        loader = built(colour, BACKENDS["resident"][0], **common)
        assert isinstance(loader, ResidentLoader)
        loader.on_host, loader.pixels = False, torch.from_numpy(loader.host)  # as where the device is one
        for one, other in zip(loader.batches(120), itertools.islice(reference, 17), strict=False):
            assert_equal(one, other)
        for one, other in zip(loader.once(), built(colour, BACKENDS["resident"][0], **common).once(), strict=True):
            assert_equal(one, other)


@backends()
def test_batches_are_the_samples_of_the_order(colour: Split, options: dict[str, Any]) -> None:
    order = Order(len(colour), seed=5)
    for step, batch in enumerate(itertools.islice(built(colour, options, seed=5).batches(), 20)):
        indices = order.indices(positions(24 * step, 24))
        assert batch.labels is not None and batch.attributes is not None and batch.embeddings is not None
        assert np.array_equal(batch.labels.numpy(), indices)  # each sample's label is its own number
        assert np.array_equal(batch.attributes.numpy(), colour.arrays["attributes"][indices])
        assert np.array_equal(batch.embeddings.numpy(), colour.arrays["embeddings"][indices])
        pixels = ((batch.x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels, colour.images[indices])


@backends()
def test_grey_images_of_odd_size(grey_shards: Path, options: dict[str, Any]) -> None:
    split = open_split(grey_shards)
    reference = built(split, BACKENDS["resident"][0], flip=True).batches()
    stream = built(split, options, flip=True).batches()
    for batch, expected in itertools.islice(zip(stream, reference, strict=True), 6):
        assert batch.x.shape == (24, 1, 7, 7)
        assert_equal(batch, expected)


@pytest.mark.parametrize("world", [1, 3, 8])
@backends()
def test_evaluation_counts_each_sample_once(colour: Split, options: dict[str, Any], world: int) -> None:
    steps, counted = set(), []
    for rank in range(world):
        batches = list(built(colour, options, rank=rank, world=world, flip=True).once())
        steps.add(len(batches))
        counted += [label for b in batches if b.labels is not None for label in b.labels.tolist()]
    assert sorted(counted) == list(range(203))
    assert len(steps) == 1  # all ranks take the same number of steps


@backends()
def test_more_ranks_than_samples_gives_empty_batches(grey_shards: Path, options: dict[str, Any]) -> None:
    split = open_split(grey_shards)
    sizes = [[len(b) for b in built(split, options, batch_size=64, rank=r, world=64).once()] for r in (0, 49, 50, 63)]
    assert sizes == [[1], [1], [0], [0]]


@backends()
def test_kept_batches_are_not_overwritten(colour: Split, options: dict[str, Any]) -> None:
    kept = list(itertools.islice(built(colour, options).batches(), 12))
    for batch, again in zip(kept, built(colour, BACKENDS["resident"][0]).batches(), strict=False):
        assert torch.equal(batch.x, again.x)


@backends()
def test_two_streams_of_one_loader_do_not_disturb_each_other(colour: Split, options: dict[str, Any]) -> None:
    loader, reference = built(colour, options), built(colour, BACKENDS["resident"][0])
    streams = [loader.batches(0), loader.batches(96), loader.once()]
    expected = [reference.batches(0), reference.batches(96), reference.once()]
    for _ in range(8):
        for stream, other in zip(streams, expected, strict=True):
            assert torch.equal(next(stream).x, next(other).x)


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@backends("mapped", "ffcv", "dali")
def test_200_abandoned_epochs_leave_no_thread_and_no_memory(colour: Split, options: dict[str, Any]) -> None:
    loader = built(colour, options, batch_size=200)  # 86 kB a batch: a leaked ring of them would show

    def abandon(times: int) -> None:
        for _ in range(times):
            stream = loader.batches()
            next(stream)
            del stream
        gc.collect()

    python_threads = threading.active_count()
    abandon(30)
    threads, before = len(os.listdir("/proc/self/task")), resident_bytes()
    abandon(200)
    assert threading.active_count() == python_threads
    assert len(os.listdir("/proc/self/task")) <= threads
    assert resident_bytes() - before < 16e6


@needs("ffcv")
def test_ffcv_leaves_the_number_of_threads_alone(colour: Split) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(built(colour, BACKENDS["ffcv"][0]).batches())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@needs("ffcv")
def test_jpeg_is_close_to_raw_but_not_exact(tmp_path: Path) -> None:
    from data_prep.arrays import array_source
    from data_prep.writer import write_split

    ramp = np.linspace(0, 200, 16).astype(np.uint8)
    smooth = np.stack([np.broadcast_to(ramp[:, None, None] + i, (16, 16, 3)) for i in range(32)])
    write_split(tmp_path / "s", array_source(smooth, np.zeros(32), {}, None, "s"), ("npy", "jpg"))
    split = open_split(tmp_path / "s")
    jpg = next(built(split, {"name": "ffcv", "encoding": "jpg"}).batches()).x
    raw = next(built(split, BACKENDS["resident"][0]).batches()).x
    assert (jpg - raw).abs().max() < 2 * 12 / 255
