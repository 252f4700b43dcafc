"""Seconds from the command to "submitted", against the stock hydra-submitit-launcher, on the cluster of SLURM_CONF.

python benchmarks/submit.py [POINTS …]    default 25 200; the jobs are held, and cancelled at the end

Ours is the whole command, with every point validated and the code copied; stock is until its sbatch returns.
first_seconds is ours when the model has never been checked before, which loads torch.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
JOB = "dtrain-benchmark"

STOCK = """
import hydra

@hydra.main(config_path=CONFIGS, config_name="config", version_base="1.3")
def main(cfg):
    import dtrain.run

main()
"""


def ours(points: int, work: Path) -> float:
    """Seconds of the whole command. The folder may know, from a sweep before, which models are good."""
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), "-m", f"seed=range(0,{points})"]
    options = [
        f"data.path={ROOT / 'shards' / 'digits'}", "launcher.additional_parameters.hold=true",
        f"launcher.name={JOB}",
    ]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run([*command, *options], cwd=work, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    for folder in (work / "runs", *(f for f in (work / "sweeps").iterdir() if f.is_dir())):
        shutil.rmtree(folder, ignore_errors=True)
    return seconds


def stock(points: int, work: Path) -> float:
    """Seconds until the stock launcher's sbatch has returned; it would then wait for the jobs to end."""
    shim, done = work / "bin" / "sbatch", work / "submitted"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\n"{shutil.which("sbatch")}" "$@" && touch "{done}"\n')
    shim.chmod(0o755)
    app = work / "app.py"
    app.write_text(STOCK.replace("CONFIGS", repr(str(ROOT / "configs"))))
    options = [
        "hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters.hold=true",
        f"hydra.launcher.name={JOB}",
    ]  # fmt: skip
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(app), "-m", f"seed=range(0,{points})", *options],
        cwd=work, env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not done.exists():
        if process.poll() is not None:
            raise SystemExit("the stock launcher ended before it had submitted")
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    process.kill()
    process.wait()
    return seconds


def measure(points: int) -> None:
    """Prints one JSON line: medians of alternating repeats, after a first run of ours."""
    mine, theirs = [], []
    with tempfile.TemporaryDirectory() as work:
        for _ in range(REPEATS + 1):
            mine.append(ours(points, Path(work)))
            if len(mine) > 1:
                with tempfile.TemporaryDirectory() as other:
                    theirs.append(stock(points, Path(other)))
            subprocess.run(["scancel", "--me", f"--name={JOB}"], check=True)
    first, seconds, baseline = mine[0], statistics.median(mine[1:]), statistics.median(theirs)
    line = {
        "benchmark": "submit", "points": points, "seconds": round(seconds, 2), "first_seconds": round(first, 2),
        "baseline": "hydra-submitit-launcher", "baseline_seconds": round(baseline, 2),
        "ratio": round(baseline / seconds, 2),
    }  # fmt: skip
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or ("25", "200")):
        measure(count)
