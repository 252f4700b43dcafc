"""The numbers of every update, kept on the device until they are read; then averaged, and searched for NaN."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dtrain.distributed import World
from dtrain.models.base import Terms


@dataclass
class Metrics:
    """values: loss/<update>[/<term>], grad_norm/<update>/<group>, lr/<group>: means over ranks and recorded steps.

    nonfinite: the first number that was NaN or infinite, named, if any. skipped: the steps that were left out
    because of one, and its name.
    """

    values: dict[str, float] = field(default_factory=dict)
    nonfinite: str | None = None
    skipped: list[str] = field(default_factory=list)


class Record:
    """The rows of one update since they were last read: its terms, its gradient norms, whether it was skipped."""

    def __init__(self, terms: list[str], groups: list[str]) -> None:
        self.terms, self.groups = terms, groups
        self.rows: list[Tensor] = []
        self.steps: list[int] = []
        self.calls: list[int] = []

    def add(self, step: int, call: int, terms: Terms, norms: list[Tensor], skip: Tensor | None) -> None:
        """Keeps one update's scalars; call counts all updates, and so orders them."""
        self.rows.append(torch.stack([*terms.values(), *norms, *([] if skip is None else [skip])]))
        self.steps.append(step)
        self.calls.append(call)

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
        # The mean over ranks of a NaN on one is NaN on all: every rank reaches the same verdict.
        table = world.mean(torch.stack(record.rows))
        columns = len(record.terms) + len(record.groups)
        skipped = table[:, columns] > 0 if table.shape[1] > columns else torch.zeros(len(table), dtype=torch.bool)
        bad = ~table[:, :columns].isfinite()
        if overflow:
            bad[:, len(record.terms) :] = False
        for row, column in bad.nonzero().tolist():
            what = f"{record.name(label, column)} is not finite at step {record.steps[row] + 1}"
            if skipped[row]:
                if not bad[row, :column].any():
                    metrics.skipped.append(what)
            elif first is None or record.calls[row] < first[0]:
                first = (record.calls[row], what)
        kept = table[~skipped, :columns].masked_fill(overflow & ~table[~skipped, :columns].isfinite(), torch.nan)
        means = (kept.nanmean(0) if overflow else kept.mean(0)).tolist()
        terms = dict(zip(record.terms, means, strict=False))
        metrics.values |= {f"loss/{label}": sum(terms.values())} | {f"loss/{label}/{k}": v for k, v in terms.items()}
        norms = zip(record.groups, means[len(record.terms) :], strict=True)
        metrics.values |= {f"grad_norm/{label}/{g}": v for g, v in norms}
        record.rows, record.steps, record.calls = [], [], []
    metrics.nonfinite = first[1] if first else None
    return metrics
