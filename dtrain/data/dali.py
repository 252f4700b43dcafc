"""NVIDIA DALI over raw rows (images.npy) or PNG members (images.tar), fed by the same order as every loader.

The pipeline runs synchronously inside our own prefetching thread, one pipeline per stream: it then holds no queue
of its own, so that nothing stale is left in it when a stream is abandoned and an error cannot surface early.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from nvidia.dali import Pipeline, fn
from nvidia.dali.types import DALIDataType, DALIImageType
from torch import Tensor

from dtrain.data.checksums import RowGuard
from dtrain.data.encoded import Encoded
from dtrain.data.gather import Gather
from dtrain.data.prefetch import prefetch
from dtrain.data.shards import Split
from dtrain.data.stream import Rows, ShardLoader, Spec


class DaliLoader(ShardLoader):
    """source: npy (raw rows) or tar (PNG members, for other tools' sake; slower). threads: DALI's own, for PNG."""

    def __init__(
        self,
        split: Split,
        spec: Spec,
        *,
        source: Literal["npy", "tar"] = "npy",
        threads: int = 1,
        batches_ahead: int = 3,
    ) -> None:
        super().__init__(split, spec)
        if source not in ("npy", "tar"):
            raise ValueError(f"loader=dali reads source=npy or source=tar, not {source!r}")
        if threads < 1 or batches_ahead < 1:
            raise ValueError(f"threads={threads} and batches_ahead={batches_ahead} must be at least 1")
        self.source, self.threads, self.batches_ahead = source, threads, batches_ahead
        self.guard = RowGuard(split, "images.npy" if source == "npy" else "images.tar")
        self.tar = Encoded(split, "images.tar", "tar") if source == "tar" else None

    def images(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, Tensor], None, None]:
        for rows, pixels in prefetch(self._run(plan), self.batches_ahead + 1):
            yield rows, self.transfer(pixels)

    def _run(self, plan: Iterator[Rows]) -> Generator[tuple[Rows, npt.NDArray[np.uint8]], None, None]:
        pipeline = self._pipeline()
        feed = Gather(self.split.images, self.rows_per_step, 1) if self.tar is None else self.tar.read
        empty = np.empty((0, *self.split.images.shape[1:]), dtype=np.uint8)
        for rows in plan:
            if not len(rows.indices):  # DALI has no empty batches
                yield rows, empty
                continue
            (out,) = pipeline.run(encoded=feed(rows.indices))
            pixels = np.asarray(out.as_tensor())
            self.guard.check(rows.indices, pixels)
            yield rows, pixels

    def _pipeline(self) -> Pipeline:
        pipeline = Pipeline(
            batch_size=self.rows_per_step,
            num_threads=self.threads,
            device_id=None,
            exec_pipelined=False,
            exec_async=False,
            exec_dynamic=True,  # outputs are then kept until released, not overwritten by the next run
            prefetch_queue_depth=1,
        )
        raw = self.tar is None
        with pipeline:
            rows = fn.external_source(name="encoded", no_copy=True, dtype=DALIDataType.UINT8, ndim=3 if raw else 1)
            mode = DALIImageType.RGB if self.split.image_shape[0] == 3 else DALIImageType.GRAY
            pipeline.set_outputs(rows if raw else fn.decoders.image(rows, device="cpu", output_type=mode))
        pipeline.build()
        return pipeline
