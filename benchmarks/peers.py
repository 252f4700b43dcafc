"""This project beside pythae and Lightning: whole commands on the same networks and images, one thread, in turns.

    python -m benchmarks.peers --folder build/peers [--kinds conv mlp] [--rounds 5] [--steps 300]

The folder gets the shards, the logs, and an environment with the peers, which shares this one's torch. Each program
has its own defaults: this project's evaluates, draws pictures and writes a report at the end, the others do not, and
have torch's transposed convolution where this project's decoder has its own (dtrain.nets.dcgan.ToPixels).
images/s are of the steps after a sixth of them; CPU seconds and peak memory are the system's, of the whole process.
A table in Markdown, and a JSON line: medians over the rounds; ratios are medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_sides import BATCH, CODE, MATCH, WIDTHS
from data_prep.arrays import array_source
from data_prep.writer import write_split

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("dtrain", "pythae", "lightning")
PACKAGES = ("pythae", "lightning")
IMAGES = {"train": 12_800, "valid": 1_000, "test": 1_000}
COLUMNS = (
    "images_per_s",
    "images_per_cpu_s",
    "first_step_s",
    "first_step_cpu_s",
    "whole_s",
    "whole_cpu_s",
    "peak_mb",
)


def environment(folder: Path) -> Path:
    """The interpreter of an environment with the peers and, behind it, all packages of this one."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "own.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "installed").touch()
    return python


def prepare(folder: Path) -> None:
    """Shards of random 28 x 28 images."""
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        labels = rng.integers(0, 10, count)
        write_split(folder / "shards" / split, array_source(images, labels, {"what": "noise"}, None, split))


def command(side: str, kind: str, folder: Path, steps: int, peers: Path) -> list[str]:
    if side != "dtrain":
        return [str(peers), "-m", "benchmarks.peer_sides", side, kind, str(folder), str(steps)]
    return [
        sys.executable, "-m", "dtrain", "model=wae_mmd", "model._target_=benchmarks.peer_sides.Timed",
        f"+model.kind={kind}", f"model.code_dim={CODE}", f"model.width={WIDTHS['conv']}",
        f"model.lambda_match={MATCH}", f"data.path={folder / 'shards'}", f"trainer.batch_size={BATCH}",
        f"trainer.max_steps={steps}", f"run.dir={folder / 'dtrain'}",
    ]  # fmt: skip


def turn(side: str, kind: str, folder: Path, steps: int, peers: Path) -> dict[str, float]:
    """One whole command. SystemExit with the end of its log if it fails."""
    for old in SIDES:
        shutil.rmtree(folder / old, ignore_errors=True)
    marks, times, log = [1, steps // 6, steps], folder / "times.json", folder / f"{side}.log"
    times.unlink(missing_ok=True)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    own |= {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PEER_TIMES": str(times),
        "PEER_STEPS": " ".join(map(str, marks)),
    }  # fmt: skip
    begin = time.time()
    with log.open("w") as out:
        process = subprocess.Popen(
            command(side, kind, folder, steps, peers), env=own, cwd=folder, stdout=out, stderr=out
        )
        _, status, used = os.wait4(process.pid, 0)
    whole = time.time() - begin
    if status or not times.exists():
        raise SystemExit(f"{side} failed:\n{log.read_text()[-2000:]}")
    found = json.loads(times.read_text())
    (first, first_cpu), (warm, warm_cpu), (last, last_cpu) = found["times"]
    images = (marks[2] - marks[1]) * BATCH
    return {
        "images_per_s": images / (last - warm), "images_per_cpu_s": images / (last_cpu - warm_cpu),
        "first_step_s": first - begin, "first_step_cpu_s": first_cpu, "whole_s": whole,
        "whole_cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024,
        "parameters": found["parameters"],
    }  # fmt: skip


def compare(kind: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of every side, and of the rounds' ratios of this project to each peer."""
    assert len({turn["parameters"] for r in rounds for turn in r.values()}) == 1, "the networks differ"
    medians = {s: {c: statistics.median(r[s][c] for r in rounds) for c in COLUMNS} for s in SIDES}
    ratios = {
        peer: {c: round(statistics.median(r["dtrain"][c] / r[peer][c] for r in rounds), 3) for c in COLUMNS}
        for peer in SIDES[1:]
    }
    print(f"\n| {kind} | images/s | per CPU second | first step, s | its CPU s | whole, s | CPU s | peak, MB |")
    print("|--|--|--|--|--|--|--|--|")
    for side, values in medians.items():
        print(f"| {side} | " + " | ".join(f"{values[c]:,.1f}" for c in COLUMNS) + " |")
    for peer, values in ratios.items():
        print(f"| dtrain / {peer} | " + " | ".join(f"{values[c]:.2f}" for c in COLUMNS) + " |")
    return {"median": medians, "ratio": ratios, "parameters": int(rounds[0]["dtrain"]["parameters"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="a multiple of the 100 of an epoch")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    peers = environment(folder)
    prepare(folder)
    result = {}
    for kind in args.kinds:
        rounds = []
        for number in range(args.rounds):
            order = SIDES if number % 2 else SIDES[::-1]
            rounds.append({side: turn(side, kind, folder, args.steps, peers) for side in order})
            shown = {s: {c: round(v, 1) for c, v in values.items()} for s, values in rounds[-1].items()}
            print(f"{kind}, round {number + 1} of {args.rounds}: {json.dumps(shown)}", file=sys.stderr)
        result[kind] = compare(kind, rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
