"""The table: mean and standard deviation over seeds, as CSV with a line a number and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dtrain.compare.papers import printed
from dtrain.compare.runs import Row
from dtrain.config import HeldOut
from dtrain.metrics import by_prior
from dtrain.results import markdown as table

REAL = "real data"
KEYS = ["part", "row", "of", "metric"]
# A number of one run. part: cost, group (of a parameter group), metric, samples (of a generative model) or data.
Number = tuple[str, str, str, str, float]


def measured(rows: Sequence[Row]) -> list[Number]:
    """The metrics of every run."""
    found = []
    for row in rows:
        for run in row.runs:
            for name, value in run.metrics.items():
                metric, of = by_prior(name)
                part = "data" if of == "data" else "samples" if of else "metric"
                found.append((part, row.label, of, metric, value))
    return found


def summary(numbers: Sequence[Number], rows: Sequence[Row], split: HeldOut) -> pd.DataFrame:
    """A line for each metric of each row: mean, standard deviation of the sample, how many seeds, and the papers'.

    Of real images, what all runs agree on is one line, if they are of the same data.
    """
    frame = pd.DataFrame(numbers, columns=[*KEYS, "value"])
    if all(row.first.data == rows[0].first.data for row in rows):
        frame = _agreed(frame)
    values = frame.groupby(KEYS, sort=False)["value"]
    # pandas leaves NaN out of a mean, but a seed that has diverged must show.
    result = values.agg(
        mean=lambda v: v.mean(skipna=False), std=lambda v: v.std(skipna=False), n="size"
    ).reset_index()
    of = {row.label: row for row in rows}
    result.insert(2, "model", [of[k].first.model if k in of else "" for k in result["row"]])
    result.insert(3, "runs", [_runs(of[k]) if k in of else "" for k in result["row"]])
    named = zip(result["row"], result["metric"], result["of"], strict=True)
    papers = [_papers(of.get(k, rows[0]), metric, by, split) for k, metric, by in named]
    return result.assign(paper=[p for p, _ in papers], same_protocol=[s for _, s in papers])


def _agreed(frame: pd.DataFrame) -> pd.DataFrame:
    """A metric of real images that is the same in all runs becomes one line, of no row."""
    real = frame["part"] == "data"
    alike = (
        frame[real]
        .groupby("metric")["value"]
        .transform(lambda v: float(np.allclose(v, v.iloc[0], rtol=1e-6, atol=0, equal_nan=True)))
    )
    same = real & (alike.reindex(frame.index) == 1)
    frame.loc[same, "row"] = REAL
    return frame[~(same & frame.duplicated(KEYS))]


def _runs(row: Row) -> str:
    return " ".join(run.folder.name for run in row.runs)


def _papers(row: Row, metric: str, of: str, split: HeldOut) -> tuple[str, str]:
    found = list(printed(row.first, metric, of, split))
    return "; ".join(number for number, _ in found), "; ".join(same for _, same in found)


def markdown(frame: pd.DataFrame, rows: Sequence[Row], split: HeldOut) -> str:
    """The same by model, by parameter group, by generative model, and beside the papers' numbers."""
    cells = frame.assign(cell=[_cell(*values) for values in zip(frame["mean"], frame["std"], strict=True)])
    seeds = {row.label: len(row.runs) for row in rows}
    few = [n < seeds.get(label, n) for label, n in zip(frame["row"], frame["n"], strict=True)]
    cells.loc[few, "cell"] += [f" (n = {n})" for n in frame["n"][few]]
    about = pd.DataFrame(
        {
            "row": [row.label for row in rows], "model": [row.first.model for row in rows],
            "runs": [_runs(row) for row in rows], "seeds": [len(row.runs) for row in rows],
        }
    )  # fmt: skip
    whole = cells[cells["part"].isin(["cost", "metric"])]
    papers = cells[cells["paper"] != ""]
    beside = {"row": "row", "of": "of", "metric": "metric", "cell": "ours", "paper": "paper"}
    beside |= {"same_protocol": "same protocol?"}
    parts = {
        "Models": about.merge(_wide(whole).drop(columns="of"), on="row"),
        "Parameter groups": _wide(cells[cells["part"] == "group"]).rename(columns={"of": "group"}),
        "Samples": _wide(cells[cells["part"].isin(["samples", "data"])]).rename(columns={"of": "generative model"}),
        "Papers": papers[list(beside)].rename(columns=beside),
    }
    text = (
        f"Metrics of the {split} split. With several seeds: mean ± standard deviation of the sample over them "
        "(docs/evaluation.md).\n"
    )
    return text + "".join(f"\n## {title}\n\n{table(part)}" for title, part in parts.items() if len(part))


def _wide(cells: pd.DataFrame) -> pd.DataFrame:
    """A column for each metric, in the order that they have come in."""
    index = ["row", "of"]
    wide = cells.pivot(index=index, columns="metric", values="cell").reindex(columns=cells["metric"].unique())
    order = pd.MultiIndex.from_frame(cells[index].drop_duplicates())
    return wide.reindex(order).fillna("").reset_index()


def _cell(mean: float, std: float) -> str:
    """Four digits of the mean, or all of a count."""
    text = f"{mean:,.0f}" if float(mean).is_integer() else f"{mean:.4g}"
    return text if np.isnan(std) or not std else f"{text} ± {std:.2g}"
