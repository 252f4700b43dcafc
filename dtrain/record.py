"""The numbers of every update, kept on the device until they are read; then averaged, and searched for NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dtrain.world import World


@dataclass
class Metrics:
    """values: loss/<update>[/<term>], grad_norm/<update>/<group>, lr/<group>: means over ranks and recorded steps,

    of the norms over those steps in which they were measured.

    nonfinite: the first number that was NaN or infinite, named, if any. skipped: the steps that were left out
    because of one, and its name.
    """

    values: dict[str, float] = field(default_factory=dict)
    nonfinite: str | None = None
    skipped: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """One update: when it was (call counts all updates, and so orders them), and its scalars on the device.

    scalars: its terms, then per group the gradient norm if measured, else one over the biases alone.
    skip: 1 where the step was skipped; None where steps never are.
    """

    step: int
    call: int
    measured: bool
    scalars: list[Tensor]
    skip: Tensor | None


class Record:
    """The rows of one update since they were last read."""

    def __init__(self, terms: list[str], groups: list[str]) -> None:
        self.terms, self.groups = terms, groups
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def table(self) -> Tensor:
        """[rows, terms + groups + 1]: the scalars and the skip of every row."""
        none = torch.zeros_like(self.rows[0].scalars[0])
        every = [x for row in self.rows for x in (*row.scalars, none if row.skip is None else row.skip)]
        return torch.stack(every).view(len(self.rows), -1)

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
        # The mean over ranks of a NaN on one is NaN on all: every rank reaches the same verdict. In numpy: each of
        # torch's operations lets go of Python's lock, and waits for the thread that writes the last log.
        table, skipped = np.split(world.mean(record.table()).numpy(), [len(record.terms) + len(record.groups)], 1)
        bad = ~np.isfinite(table)
        if overflow:
            bad[:, len(record.terms) :] = False
        for index, column in np.argwhere(bad).tolist():
            row = record.rows[index]
            what = f"{record.name(label, column)} is not finite at step {row.step + 1}"
            if skipped[index]:
                if not bad[index, :column].any():
                    metrics.skipped.append(what)
            elif first is None or row.call < first[0]:
                first = (row.call, what)
        kept = skipped[:, 0] == 0
        counted = np.repeat(kept[:, None], table.shape[1], 1)
        counted[:, len(record.terms) :] &= np.array([[row.measured] for row in record.rows])
        if overflow:
            counted &= np.isfinite(table)
        counts = counted.sum(0)
        sums = np.where(counted, table, 0.0).sum(0)
        means = [float(total / n) if n else math.nan for total, n in zip(sums, counts, strict=True)]
        terms = dict(zip(record.terms, means, strict=False))
        metrics.values |= {f"loss/{label}": sum(terms.values())} | {f"loss/{label}/{k}": v for k, v in terms.items()}
        norms = zip(record.groups, means[len(record.terms) :], strict=True)
        metrics.values |= {f"grad_norm/{label}/{g}": v for g, v in norms if not math.isnan(v)}
        record.rows = []
    metrics.nonfinite = first[1] if first else None
    return metrics
