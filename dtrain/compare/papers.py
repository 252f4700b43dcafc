"""What papers print for a run's model, data and metric (dtrain/papers.yaml), and whether it was measured the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dtrain.compare.runs import Run
from dtrain.config import HeldOut
from dtrain.metrics import OF_SAMPLES, family, member

FILE = Path(__file__).resolve().parent.parent / "papers.yaml"
YES = "yes: networks, epochs, extractor and samples"
SAME_LENGTH = 0.01  # epochs that differ by less are as many


def printed(run: Run, metric: str, of: str, split: HeldOut) -> Iterator[tuple[str, str]]:
    """(number and source, yes or no with the reasons) for every number that a paper has.

    metric, of: as dtrain.metrics.by_prior splits them; of is "data" for real images.
    """
    for table in _tables():
        if table["data"] != run.config.data.name:
            continue
        for row in table["rows"]:
            if _is_of(row, run, metric, of):
                spread = f" ± {row['std']:g}" if "std" in row else ""
                protocol = {**table["protocol"], **row}
                doubts = [*table["protocol"].get("doubts", ()), *row.get("doubts", ())]
                reasons = [*_differences(protocol, run, metric, of, split), *doubts]
                source = f"{table['paper']}, table {table['table']}"
                yield f"{row['value']:g}{spread} ({source})", f"no: {', '.join(reasons)}" if reasons else YES


@cache
def _tables() -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())
    return tables


def _is_of(row: dict[str, Any], run: Run, metric: str, of: str) -> bool:
    """Whether the number is of this model, metric, and generative model or reconstruction."""
    if row["metric"] != family(metric) or row["model"] != ("data" if of == "data" else run.model):
        return False
    own = of or member(metric)
    return row.get("of", own) == own and all(_setting(run, k) == v for k, v in row.get("where", {}).items())


def _setting(run: Run, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(run.config, section).get(name)


def _differences(protocol: dict[str, Any], run: Run, metric: str, of: str, split: HeldOut) -> Iterator[str]:
    """In a few words each, what of the protocol is not the run's, or not known."""
    if split != "test":
        yield "validation split"
    if family(metric) in OF_SAMPLES:
        ours, theirs = member(metric), protocol.get("extractor")
        if ours != theirs:
            yield f"extractor {theirs or 'not stated'}, not {ours}"
        # Of an Inception Score at least as many; the configuration is not what a later evaluation was told.
        yield from _count("samples", protocol.get("samples"), run.metrics.get(f"distance_images/{ours}/{of}", 0))
    if protocol["model"] != "data":
        yield from _count("epochs", protocol.get("epochs"), _epochs(run))
        for key, value in protocol.get("networks", {}).items():
            if _setting(run, key) != value:
                yield f"{key}={_setting(run, key)}, not {value}"
        if "networks" not in protocol:
            yield "networks not public"


def _count(what: str, theirs: float | None, ours: float) -> Iterator[str]:
    if theirs is None:
        yield f"{what} not stated"
    elif abs(ours - theirs) > SAME_LENGTH * theirs:
        yield f"{ours:.4g} {what}, not {theirs:g}"


def _epochs(run: Run) -> float:
    """Of the run's longest stage."""
    found = (line.get("epoch") for line in run.lines if line.get("kind") == "train")
    return max((float(e) for e in found if isinstance(e, int | float)), default=0.0)
