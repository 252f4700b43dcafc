"""python -m dtrain.report RUN|SWEEP: one HTML file with all there is to see, which opens from disk, without network.

RUN is a run folder, runs/<name>; SWEEP a sweep's, sweeps/<id>. Both may still be under way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dtrain.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dtrain.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN|SWEEP")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the folder")
    parser.add_argument("--model", action="append", default=[], help="module of a run's model outside dtrain.models")
    parser.add_argument("--objective", help="metric that a sweep is judged by (default: objective, if there is one)")
    parser.add_argument("--watch", action="store_true", help="renew a sweep's report until its points have ended")
    parser.add_argument("--every", type=float, default=30, metavar="SECONDS", help="of --watch (default: 30)")
    arguments = parser.parse_args(argv)
    try:
        _report(arguments)
    except (ConfigError, OSError) as e:
        print(f"dtrain.report: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _report(arguments: argparse.Namespace) -> None:
    """Writes the page and says where. ConfigError where there is nothing to write about."""
    folder, out = arguments.folder, arguments.out or arguments.folder / "report.html"
    if (folder / "sweep.json").is_file():
        from dtrain.report.sweep import sweep_page

        every = max(1.0, arguments.every) if arguments.watch else None
        while sweep_page(folder.absolute(), out, arguments.objective, every) and every:
            print(f"wrote {out}; again in {every:g} s", flush=True)
            time.sleep(every)
    elif (folder / "config.yaml").is_file():
        from dtrain.report.run import run_page

        if arguments.watch:
            raise ConfigError(f"--watch: {folder} is a run; a sweep is watched")
        run_page(folder, out, arguments.model)
    else:
        raise ConfigError(
            f"{folder} is no run folder, it has no config.yaml, nor a sweep's, it has no sweep.json: name "
            "runs/<name>, or sweeps/<id>"
        )
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
