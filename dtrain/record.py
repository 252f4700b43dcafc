"""The numbers of every update, kept on the device until they are read; then averaged, and searched for NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.world import World


@dataclass
class Metrics:
    """values: loss/<update>[/<term>], grad_norm/<update>/<group>, watch/<name>/<term>, lr/<group>: means over ranks

    and recorded steps, of the norms and of what is watched over those steps in which they were measured.

    nonfinite: the first number that was NaN or infinite, named, if any. skipped: the steps that were left out
    because of one, and its name.
    """

    values: dict[str, float] = field(default_factory=dict)
    nonfinite: str | None = None
    skipped: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """One update: when it was (call counts all updates, and so orders them), and its numbers on the device.

    values: the terms; where they were measured, the groups' gradient norms; where steps may be skipped, then a 1 if
    this one was.
    """

    step: int
    call: int
    values: Tensor


class Record:
    """The rows of one update since they were last read; or, not trained, of what is watched: a NaN is no error."""

    def __init__(self, terms: list[str], groups: list[str], trained: bool = True) -> None:
        self.terms, self.groups, self.trained = terms, groups, trained
        self.rows: list[Row] = []

    def table(self, world: World) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """[rows, terms + groups + 1]: the means over ranks, 0 where a row has no such number; and where it has one.

        The mean of a NaN on one rank is NaN on all: every rank reaches the same verdict.
        """
        widths = np.array([len(row.values) for row in self.rows])
        has = np.arange(len(self.terms) + len(self.groups) + 1) < widths[:, None]
        table = np.zeros(has.shape)
        # In numpy from here on: each of torch's operations lets go of Python's lock, and waits for the thread that
        # writes the last log.
        table[has] = world.mean(torch.cat([row.values for row in self.rows])).numpy()
        return table, has

    def name(self, label: str, column: int) -> str:
        if column < len(self.terms):
            return f"loss term {self.terms[column]!r} of update {label!r}"
        return f"gradient of group {self.groups[column - len(self.terms)]!r} in update {label!r}"


def read(records: dict[str, Record], world: World, overflow: bool) -> Metrics:
    """Empties the records. overflow: infinite gradients are a loss scale's business, not an error."""
    metrics, first = Metrics(), None
    for label, record in records.items():
        if not record.rows:
            continue
        table, has = record.table(world)
        skipped, terms = table[:, -1] > 0, len(record.terms)
        finite = np.isfinite(table)
        bad = ~finite & record.trained
        if overflow:
            bad[:, terms:] = False
        for index, column in np.argwhere(bad).tolist():
            row = record.rows[index]
            what = f"{record.name(label, column)} is not finite at step {row.step + 1}"
            if skipped[index]:
                if not bad[index, :column].any():
                    metrics.skipped.append(what)
            elif first is None or row.call < first[0]:
                first = (row.call, what)
        counted = has & ~skipped[:, None] & (finite | (record.trained and not overflow))
        metrics.values |= _named(label, record, table, counted)
        record.rows = []
    metrics.nonfinite = first[1] if first else None
    return metrics


def _named(label: str, record: Record, table: npt.NDArray[Any], counted: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The means of the counted numbers, by their metrics' names."""
    counts, sums = counted.sum(0), np.where(counted, table, 0.0).sum(0)
    means = [float(total / n) if n else math.nan for total, n in zip(sums, counts, strict=True)]
    terms = dict(zip(record.terms, means, strict=False))
    if not record.trained:
        return {f"{label}/{k}": v for k, v in terms.items() if not math.isnan(v)}
    norms = zip(record.groups, means[len(terms) :], strict=False)
    values = {f"loss/{label}": sum(terms.values())} | {f"loss/{label}/{k}": v for k, v in terms.items()}
    return values | {f"grad_norm/{label}/{g}": v for g, v in norms if not math.isnan(v)}
