"""python -m dtrain.evaluate <run>: held-out numbers and pictures of a run's newest checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dtrain import config as configs
from dtrain.config import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dtrain.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    folder: Path = parser.parse_args().run
    try:
        config = configs.validate(configs.load(folder / "config.yaml"))
        from dtrain.run import evaluate_run

        evaluate_run(config, folder)
        return 0
    except ConfigError as e:
        print(f"dtrain.evaluate: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
