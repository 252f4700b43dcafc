"""FFCV over raw.beton (bit-exact) or jpg.beton (smaller, lossy), fed by the same order as every loader.

Of FFCV only the compiled pipeline is used, run in our own prefetching thread: FFCV's epoch threads leak when they
are abandoned, and hang on an exception.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader as FfcvPipeline
from ffcv.loader.epoch_iterator import EpochIterator
from torch import Tensor

from dtrain.data.beton import checked_beton
from dtrain.data.checksums import RowGuard
from dtrain.data.encoded import Encoded
from dtrain.data.prefetch import prefetch
from dtrain.data.shards import Split
from dtrain.data.stream import Rows, ShardLoader, Spec


class _Slots(EpochIterator):
    """FFCV's ring of batch buffers and its compiled pipeline, without its thread."""

    def start(self) -> None:
        """The pipeline runs in the thread of whoever calls run_pipeline."""


class FfcvLoader(ShardLoader):
    """encoding: raw or jpg. workers: threads inside one batch (one gathers fastest on a busy machine)."""

    def __init__(
        self,
        split: Split,
        spec: Spec,
        *,
        encoding: Literal["raw", "jpg"] = "raw",
        workers: int = 1,
        batches_ahead: int = 3,
    ) -> None:
        super().__init__(split, spec)
        if encoding not in ("raw", "jpg"):
            raise ValueError(f"loader=ffcv reads encoding=raw or encoding=jpg, not {encoding!r}")
        cores = os.cpu_count() or 1
        if not 1 <= workers <= cores or batches_ahead < 1:
            raise ValueError(
                f"workers={workers} must lie in 1..{cores} (this machine's cores) and "
                f"batches_ahead={batches_ahead} be at least 1"
            )
        self.batches_ahead, self.lossy = batches_ahead, encoding == "jpg"
        file = checked_beton(split, encoding)
        self.encoded = Encoded(split, file.name, "jpg") if encoding == "jpg" else None
        self.guard = RowGuard(split, file.name) if encoding == "raw" else None
        self.pipeline = FfcvPipeline(
            str(file),
            batch_size=self.rows_per_step,
            num_workers=workers,
            os_cache=True,
            batches_ahead=batches_ahead,
            pipelines={"image": [NDArrayDecoder() if encoding == "raw" else SimpleRGBImageDecoder()]},
        )

    def images(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, Tensor], None, None]:
        for rows, pixels in prefetch(self._run(plan), self.batches_ahead + 1):
            yield rows, self.transfer(pixels)

    def _run(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, npt.NDArray[np.uint8]], None, None]:
        numba.set_num_threads(self.pipeline.num_workers)  # per thread
        slots = _Slots(self.pipeline, np.empty(0, dtype=np.uint64))
        for number, rows in enumerate(plan):
            if self.encoded is not None:
                self.encoded.read(rows.indices)
            slot = number % (self.batches_ahead + 2)
            (pixels,) = slots.run_pipeline(number, rows.indices.astype(np.uint64), slot, None)
            if self.guard is not None:
                self.guard.check(rows.indices, pixels)
            yield rows, pixels
