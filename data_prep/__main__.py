"""python -m data_prep <name> --source … --out shards/<name>: original files to shards; also verify and sheet."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from data_prep.download import download
from data_prep.embed import from_file, with_embeddings
from data_prep.holdout import hold_out, with_valid
from data_prep.sheet import write_sheet
from data_prep.source import Source, SourceError
from data_prep.verify import find_splits, summary, verify_split
from data_prep.writer import FORMATS, is_written, make_split, publish
from dtrain.data.shards import ShardError

NAMES = ("digits", "celeba", "svhn", "mnist", "fashion_mnist", "cifar10", "flowers102", "folder")


def _formats(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = sorted(set(chosen) - set(FORMATS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no format {', '.join(unknown)}: choose from {', '.join(FORMATS)}")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")
    for name in NAMES:
        p = commands.add_parser(name, help=(import_module(f"data_prep.{name}").__doc__ or "").splitlines()[0])
        p.add_argument("--out", type=Path, help=f"folder of the splits (default: shards/{name})")
        p.add_argument("--size", type=int, help="side of the square images, in pixels")
        p.add_argument("--formats", type=_formats, default=["npy"], help=f"comma-separated: {', '.join(FORMATS)}")
        p.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
        p.add_argument("--skip-broken", action="store_true", help="leave unreadable samples out, and record them")
        p.add_argument(
            "--hold-out",
            type=int,
            metavar="N",
            help="without test images: test is the last N training ones, valid the N before",
        )
        if name != "digits":
            p.add_argument("--source", type=Path, required=True, help="folder (or archive) of the original files")
            p.add_argument("--download", action="store_true", help="fetch them into --source by torchvision")
        if name == "celeba":
            p.add_argument("--crop", type=int, help="side of the centre square to cut out first (default: the width)")
        if name == "flowers102":
            _embedding_options(p)
    p = commands.add_parser("verify", help="compare every file of prepared shards with its manifest")
    p.add_argument("path", type=Path, help="shards/<name>, or one split of it")
    p = commands.add_parser("sheet", help="draw a contact sheet of one split")
    p.add_argument("path", type=Path, help="shards/<name>/<split>")
    p.add_argument("--out", type=Path, required=True, help="PNG file")
    return parser


def _embedding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--embed", action="store_true", help="embed the captions, or sentences of class and hue")
    group.add_argument(
        "--embeddings", type=Path, metavar="FILE.npy", help="floats [N, E] or [N, K, E] in their place"
    )


def _splits(args: argparse.Namespace) -> dict[str, Source]:
    """The sources of the data set, non-empty ones only."""
    source: Path = getattr(args, "source", Path())
    if getattr(args, "download", False):
        source = download(args.name, source)
    if args.size is not None and args.size < 1:
        raise SourceError(f"--size {args.size}: must be at least 1")
    options = {"crop": args.crop} if "crop" in args else {}
    found: dict[str, Source] = import_module(f"data_prep.{args.name}").splits(source, args.size, **options)
    splits = {split: s for split, s in found.items() if len(s)}
    splits = with_valid(hold_out(splits, args.hold_out) if args.hold_out else splits)
    if getattr(args, "embed", False):
        from data_prep.flowers102 import described_in_words

        return with_embeddings(described_in_words(splits))
    if getattr(args, "embeddings", None):
        return from_file(splits, args.embeddings)
    return splits


def _prepare(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise SourceError(f"--workers {args.workers}: must be at least 1")
    out = args.out or Path("shards") / args.name
    splits = {out / split: source for split, source in _splits(args).items()}
    made = {
        path: make_split(path, source, args.formats, args.workers, args.skip_broken)
        for path, source in splits.items()
        if not is_written(path, source, args.formats, args.skip_broken)
    }
    for path, manifest in made.items():  # all or none: earlier splits stay where one of the new ones is refused
        publish(path, manifest)
    print("\n".join(map(summary, splits)))
    return 0


def _verify(args: argparse.Namespace) -> int:
    splits = find_splits(args.path)
    problems = [problem for split in splits for problem in verify_split(split)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("\n".join(f"{summary(split)}: every byte as written" for split in splits))
    return 1 if problems else 0


def _sheet(args: argparse.Namespace) -> int:
    shown, images = write_sheet(args.path, args.out)
    print(f"{args.out}: {shown} of the {images} images of {args.path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 for damage found by verify, 2 for input that cannot be used."""
    args = _parser().parse_args(argv)
    run = {"verify": _verify, "sheet": _sheet}.get(args.name, _prepare)
    try:
        return run(args)
    except (SourceError, ShardError, OSError, MemoryError) as e:
        print(f"data_prep {args.name}: {' '.join(str(e).splitlines()) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
