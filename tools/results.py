"""Makes the tables and curves of docs/results.md from the metrics files in docs/results/: make results.

python tools/results.py           rewrites what lies between <!-- table: name --> and <!-- end --> by tables.yaml, and
                                  draws the curves of curves.yaml into docs/images/
python tools/results.py --check   exit code 1 if a table would change
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics file."""
    with gzip.open(DOCS / "results" / f"{run}.jsonl.gz", "rt") as f:
        return [json.loads(line) for line in f]


def value(run: str, expression: str, last: int) -> float:
    """A metric of a run's result, or a quotient `a / b` of two; the median over its `last` evaluations.

    Evaluations on test, where there are any, or after `valid: ` those on valid. `images` and `minutes` are the
    training's: of its first stage, whose count the next one begins anew, and of all of it.
    """
    numerator, _, denominator = expression.partition(" / ")
    if denominator:
        return value(run, numerator, last) / value(run, denominator, last)
    split, _, expression = expression.rpartition(": ")
    lines = metrics(run)
    if expression == "minutes":
        stamps = [line["time"] for line in lines if line["kind"] == "train"]
        return float(stamps[-1] - stamps[0]) / 60
    if expression == "images":
        counts = [float(line["images"]) for line in lines if line["kind"] == "train"]
        return next((a for a, b in itertools.pairwise(counts) if b < a), counts[-1])
    found = [line for line in lines if line["kind"] == "evaluation" and expression in line]
    found = [line for line in found if line.get("split") == (split or "test")] or found
    if not found:
        raise SystemExit(f"docs/results/{run}.jsonl.gz: no evaluation has {expression}")
    return statistics.median(float(line[expression]) for line in found[-last:])


def cell(values: list[float]) -> str:
    """Mean and, of several runs, standard deviation, to three digits of the mean."""
    mean = statistics.fmean(values)
    digits = max(0, 3 - len(str(int(abs(mean))).lstrip("0"))) if abs(mean) >= 0.1 else 4
    text = f"{mean:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def filled(text: str, row: dict[str, Any]) -> str:
    """{} in a metric stands for the row's `of`, {name} for what it has by that name; "" where it has none."""
    of = row.get("of", "")
    try:
        return text.format(**of) if isinstance(of, dict) else text.format(of)
    except KeyError:
        return ""


def entry(text: str, runs: list[str], last: int) -> str:
    """What stands in a row: of its runs' metric, or after "least " the smallest, or what text a "=" is before."""
    if not text or text.startswith("="):
        return text.removeprefix("=")
    values = [value(run, text.removeprefix("least "), last) for run in runs]
    return cell([min(values)] if text.startswith("least ") else values)


def table(spec: dict[str, Any]) -> str:
    """A row for each entry of `rows`, a column for each of `columns`."""
    columns: dict[str, str] = spec["columns"]
    lines = [" | ".join(["", spec.get("head", ""), "runs", *columns, ""]).strip()]
    lines.append("|" + "--|" * (len(columns) + 2))
    for label, row in spec["rows"].items():
        runs, last = row.get("runs") or spec["runs"], row.get("last", spec.get("last", 1))
        cells = [entry(filled(text, row), runs, last) for text in columns.values()]
        lines.append("| " + " | ".join([label, str(len(runs)), *cells]) + " |")
    return "\n".join(lines) + "\n"


def curve(run: str, metric: str) -> tuple[list[float], list[float]]:
    """Thousands of training images seen, and the metric on the validation split."""
    lines = metrics(run)
    images = {line["step"]: line["images"] for line in lines if line["kind"] == "train"}
    found = [line for line in lines if line["kind"] == "evaluation" and line["split"] == "valid" and metric in line]
    return [images[line["step"]] / 1000 for line in found], [line[metric] for line in found]


def draw(name: str, spec: dict[str, Any]) -> None:
    """A panel for each of `metrics`, a line for each of `runs`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(spec["metrics"]), 3.4), layout="constrained")
    panels = figure.subplots(1, len(spec["metrics"]), squeeze=False)[0]
    for panel, (title, metric) in zip(panels, spec["metrics"].items(), strict=True):
        for label, row in spec["runs"].items():
            panel.plot(*curve(row["run"], filled(metric, row)), ".-", label=label)
        panel.set(title=title, xlabel="training images / 1000")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(spec["runs"]))
    figure.savefig(DOCS / "images" / f"{name}.png", dpi=90, metadata={"Software": None})


def rendered(text: str) -> str:
    """The document with every table made anew. SystemExit for a table that tables.yaml lacks."""
    specs: dict[str, Any] = yaml.safe_load((DOCS / "results" / "tables.yaml").read_text())

    def replace(match: re.Match[str]) -> str:
        if match[2] not in specs:
            raise SystemExit(f"docs/results/tables.yaml has no table {match[2]}")
        return match[1] + table(specs[match[2]]) + match[3]

    return BLOCK.sub(replace, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    page = DOCS / "results.md"
    before = page.read_text()
    after = rendered(before)
    if not check:
        page.write_text(after)
        for name, spec in yaml.safe_load((DOCS / "results" / "curves.yaml").read_text()).items():
            draw(name, spec)
    return int(check and before != after)


if __name__ == "__main__":
    sys.exit(main())
