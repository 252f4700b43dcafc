"""python -m dtrain.evaluate <run> [evaluate.key=value …]: numbers and pictures of a run's newest checkpoint.

text="…" is short for evaluate.text="…".
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from dtrain.config import Config, ConfigError
from dtrain.evaluate.progress import Bar
from dtrain.evaluate.stored import opened, read_config, restore
from dtrain.files import STOPPED, read_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--model", action="append", default=[], help="module of a model outside dtrain.models")
    parser.add_argument("overrides", nargs="*", metavar="evaluate.key=value", help="e.g. evaluate.projection=umap")
    arguments = parser.parse_intermixed_args()
    folder: Path = arguments.run
    try:
        with Bar() as bar:
            return evaluate_run(read_config(folder, arguments.overrides, arguments.model), folder, bar)
    except ConfigError as e:
        print(f"dtrain.evaluate: {e}", file=sys.stderr)
        return 2


def evaluate_run(config: Config, folder: Path, bar: Bar | None = None) -> int:
    """Evaluates a run's newest checkpoint, or the best one of a run that has stopped early; returns the exit code.

    Draws its pictures, and adds a line to its metrics.
    """
    from dtrain.faults import Interrupted

    try:
        with opened(config, folder, bar) as (trainer, _):
            finished = read_json(folder / "status.json").get("state") == "finished"
            restore(trainer, finished)
            trainer.log.start(trainer.step, bar=False)
            trainer.evaluate(config.evaluate.split, pictures=True)
            trainer.log.line(f"pictures in {folder / 'images'}")
            if (folder / "report.html").exists():
                trainer.log.line(f"python -m dtrain.report {shlex.quote(str(folder))} takes them into report.html")
            trainer.log.close()
            return 0
    except Interrupted:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
