"""A progress bar of an evaluation: which measure or picture is under way, and how many batches it has read."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from dtrain.evaluate.evaluator import Evaluator

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[batches]}"),
    TimeElapsedColumn(),
)


class Bar:
    """On a terminal's standard error, of rank 0; elsewhere it says nothing."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
        self._bar = Progress(
            *COLUMNS, console=console, transient=True, disable=bool(rank) or not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        self._task = self._bar.add_task("loading", total=None, batches="")
        self._parts = self._batches = 0

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def follow(self, evaluator: Evaluator) -> Evaluator:
        """The same evaluator, which moves the bar. It is asked to poll between batches."""
        from dtrain.evaluate.evaluator import MEASURES  # loads torch
        from dtrain.evaluate.pictures import OF_IMAGES, OF_RUNS

        images = bool(evaluator.valid.algorithm.levels)
        total = len(MEASURES) + len(OF_RUNS) + images * len(OF_IMAGES)
        self._bar.update(self._task, total=total)
        poll = evaluator.valid.site.poll

        def polled() -> None:
            poll()
            self._batch()

        site = replace(evaluator.valid.site, poll=polled)
        valid, test = (replace(evaluation, site=site) for evaluation in (evaluator.valid, evaluator.test))
        return replace(evaluator, valid=valid, test=test, tell=self._part)

    def _part(self, name: str) -> None:
        shown = name.replace("_", " ")
        self._bar.update(self._task, description=shown, completed=self._parts, batches="", refresh=True)
        self._parts, self._batches = self._parts + 1, 0

    def _batch(self) -> None:
        self._batches += 1
        self._bar.update(self._task, batches=f"{self._batches} batches")
