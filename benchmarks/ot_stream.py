"""Iterations of a potential with its problems solved ahead by a worker process, over solving them inline.

  OMP_NUM_THREADS=1 python benchmarks/ot_stream.py

D as of AE-OT's images (5 hidden layers of 512, lambda 0.1), random codes of 10 dimensions. Both ways take turns in
one process. step_ms: an update alone; solve_ms: drawing and solving a problem alone; wait: the share of its time that
the trainer waited for the worker. ratio: iterations/s with the worker over inline; bound: (t + s) / max(t, s), which
two cores allow at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dtrain import compose as configs
from dtrain.build import build_algorithm
from dtrain.data.problems import FromCodes, solve
from dtrain.data.transport import TransportProblems
from dtrain.models.base import DataFacts, Site
from dtrain.update import Updater
from dtrain.world import World

Rows = tuple[Tensor, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="m, points of a problem")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of each way in a repeat")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = configs.read(configs.compose(["model=aeot", f"trainer.batch_size={arguments.size}"]))
    algorithm = build_algorithm(config, DataFacts((1, 28, 28), images=10_000))
    updater = Updater(algorithm, config.optim, config.trainer, World())
    updater.begin(0, 0, 1, measure=False)
    site = Site(Path(), None, 0, arguments.size, World(), lambda: None, lambda *groups: "")  # type: ignore[arg-type]
    draw = FromCodes(np.random.default_rng(0).normal(0, 3, (10_000, 10)).astype(np.float32), arguments.size, 0)
    sources = [TransportProblems(site, draw, size=arguments.size, workers=w, solver="lapjv") for w in (0, 1)]
    inline, ahead = ((item[:] for item in source.batches(0)) for source in sources)
    ready = [next(inline) for _ in range(arguments.steps)]
    waited = [0.0]

    def timed(batches: Iterator[Rows]) -> Iterator[Rows]:
        while True:
            begin = time.perf_counter()
            rows = next(batches)
            waited[0] += time.perf_counter() - begin
            yield rows

    ways = {"step": iter(()), "solve": iter(()), "inline": inline, "ahead": timed(ahead)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    waits = []
    for repeat in range(arguments.repeats + 1):
        for way, batches in ways.items():
            waited[0], begin = 0.0, time.perf_counter()
            for i in range(arguments.steps):
                if way == "solve":
                    solve(draw, "lapjv", 1000 + i)
                else:
                    algorithm.stages()[1].step(iter([ready[i]]) if way == "step" else batches, updater)
            updater.read(World())
            if repeat:
                seconds[way].append((time.perf_counter() - begin) / arguments.steps)
                waits += [waited[0] / arguments.steps / seconds[way][-1]] if way == "ahead" else []
    sources[1].close()
    t, s = (statistics.median(seconds[way]) for way in ("step", "solve"))
    ratio = statistics.median(a / b for a, b in zip(seconds["inline"], seconds["ahead"], strict=True))
    print(json.dumps({
        "ratio": round(ratio, 3), "bound": round((t + s) / max(t, s), 3), "wait": round(statistics.median(waits), 4),
        "step_ms": round(1e3 * t, 2), "solve_ms": round(1e3 * s, 2),
        "iterations_per_s": round(1 / statistics.median(seconds["ahead"]), 1), "size": arguments.size,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
