"""python -m data_prep <name> --out shards/<name>: original files to shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep import digits


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("name", choices=["digits"], help="data set")
    parser.add_argument("--out", type=Path, help="folder of the splits (default: shards/<name>)")
    args = parser.parse_args()
    out = args.out or Path("shards") / args.name
    digits.prepare(out)
    print(f"{args.name}: {out}/train, {out}/test")


if __name__ == "__main__":
    main()
