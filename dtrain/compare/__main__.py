"""python -m dtrain.compare <run> <run> … [evaluate.key=value …]: runs side by side, in one table and one picture.

Runs that differ by their seed only are one row, a sweep's folder stands for all its runs. Writes compare.md,
compare.csv and compare.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtrain.compare.runs import Row, check_same_images, expand, naming, read_run, rows
from dtrain.config import Config, ConfigError, HeldOut
from dtrain.evaluate.stored import opened
from dtrain.files import STOPPED, replace_text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="run", help="a run folder, or a sweep's")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="folder of the results (default: compare)")
    parser.add_argument("--split", choices=["valid", "test"], default="test", help="default: test")
    parser.add_argument("--table-only", action="store_true", help="no picture: for runs on different data")
    parser.add_argument("--model", action="append", default=[], help="module of a model outside dtrain.models")
    arguments = parser.parse_intermixed_args(argv)
    overrides = [a for a in arguments.runs if a.startswith("evaluate.") and "=" in a]
    folders = [Path(a) for a in arguments.runs if a not in overrides]
    try:
        runs = [
            read_run(folder, label, arguments.split, overrides, arguments.model)
            for folder, label in expand(folders).items()
        ]
        if not runs:
            raise ConfigError("no run is named")
        if not arguments.table_only:
            check_same_images(runs)
        arguments.out.mkdir(parents=True, exist_ok=True)
        return compare(rows(runs), arguments.split, arguments.out, arguments.table_only)
    except (ConfigError, OSError) as e:
        print(f"dtrain.compare: {e}", file=sys.stderr)
        return 2


def compare(found: list[Row], split: HeldOut, out: Path, table_only: bool) -> int:
    """Writes the table and the picture of the rows, and prints the table; returns the exit code. ConfigError."""
    from dtrain.compare import costs
    from dtrain.compare.strips import Page, strip
    from dtrain.compare.tables import Number, markdown, measured, summary
    from dtrain.evaluate.pages import show
    from dtrain.faults import Interrupted

    numbers: list[Number] = []
    pages: list[Page] = []
    try:
        for row in found:
            folder, config = row.first.folder, _drawn(row.first.config, found[0].first.config)
            with naming(folder), opened(config, folder) as (trainer, evaluator):
                numbers += costs.numbers(row, trainer)
                if not table_only:
                    data, page = strip(row, trainer, evaluator, split)
                    pages += [page] if pages else [data, page]
    except Interrupted:
        return STOPPED
    frame = summary([*numbers, *measured(found)], found, split)
    text = markdown(frame, found, split)
    replace_text(out / "compare.md", text)
    frame.to_csv(out / "compare.csv", index=False)
    print(text)
    names = ["compare.md", "compare.csv"]
    if pages:
        show(pages, "The same held-out images and the same noise").savefig(out / "compare.png", dpi=110)
        names.append("compare.png")
    print("wrote " + " ".join(str(out / name) for name in names))
    return 0


def _drawn(config: Config, first: Config) -> Config:
    """A row's configuration and sampler, drawn as all rows are: by the first one's, with the pixels of images.npy."""
    plain: dict[str, Any] = {"points": 1, "fidelity": None, "manipulate": [], "text": None, "projection": "pca"}
    evaluate = first.evaluate.model_copy(update={**plain, "sampler": config.evaluate.sampler})
    loader = {"name": "resident", "memory_map": True}
    return config.model_copy(update={"evaluate": evaluate, "loader": loader})


if __name__ == "__main__":
    sys.exit(main())
