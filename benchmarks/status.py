"""Seconds that launch/jobs.py status and launch/collect.py take for a sweep of full-length runs, with Python's start.

python benchmarks/status.py [POINTS …]    default 1000

The runs are written here: finished ones and failed ones, with metrics of 46,900 lines, an evaluation after every
1,000, and logs of 2,000. cpu_seconds are those of the processor.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dtrain.files import write_json  # noqa: E402
from launch.store import Submission  # noqa: E402

REPEATS = 3
STEPS = 46_900
STATES = ("finished",) * 9 + ("failed",)


def write_sweep(folder: Path, points: int) -> str:
    """A sweep of so many points in the folder's sweeps/; its id."""
    sweep = folder / "sweeps" / "status-00000000"
    (sweep / "logs").mkdir(parents=True)
    submission = Submission(
        sweep / "submissions" / "1", "local", list(range(points)), {}, str(2**22 + 1), platform.node(), 1
    )
    (submission.path / "points").mkdir(parents=True)
    submission.write()
    names = [f"loss/level{i}/{term}" for i in range(1, 6) for term in ("rec", "match", "total")]
    line = {"kind": "train", "time": time.time(), "images_per_s": 9000.0, **dict.fromkeys(names, 0.123456789)}
    metrics = folder / "metrics.jsonl"
    shown = {"kind": "evaluation", "objective": 0.5, "mse/level1": 0.1, "isc/digits/normal": 7.5}
    with metrics.open("w") as f:
        for step in range(1, STEPS + 1):
            f.write(json.dumps({**line, "step": step}) + "\n")
            for split in ("valid", "test") if step == STEPS else ("valid",) * (step % 1000 == 0):
                f.write(json.dumps({**shown, "split": split, "step": step}) + "\n")
    entries = []
    for index in range(points):
        run = folder / "runs" / f"run-{index:05d}"
        run.mkdir(parents=True)
        os.link(metrics, run / "metrics.jsonl")
        write_json(run / "owner.json", {"submission": str(submission.path), "index": index})
        values = {"model.lambda_rec": 0.1, "model.lambda_match": 1e-3, "seed": index}
        entries.append({"index": index, "values": values, "signature": f"{index:010d}", "run": str(run)})
        state = STATES[index % len(STATES)]
        beat = {"state": state, "step": STEPS, "max_steps": STEPS, "time": time.time(), "loss": 0.5}
        write_json(run / "status.json", beat | {"images_per_s": 9000.0, "eta_s": 0.0, "starts": 3, "seconds": 5000.0})
        submission.log(index).write_text("epoch 1.00  step 10/46900  loss 0.5000  9,000 images/s  ETA 1:00\n" * 2000)
        submission.add_event(index, "start", job="pid 1")
        submission.add_event(index, "end", how=state, code=0, step=STEPS)
    write_json(sweep / "sweep.json", {"command": [], "time": time.time(), "keys": list(values), "points": entries})
    return sweep.name


def measure(points: int) -> None:
    """Prints a JSON line for each command: the medians."""
    with tempfile.TemporaryDirectory() as work:
        name = write_sweep(Path(work), points)
        for benchmark, command in (("status", ["jobs.py", "status"]), ("collect", ["collect.py"])):
            whole, cpu = zip(*(_seconds([*command, name], work) for _ in range(REPEATS)), strict=True)
            line = {"seconds": round(statistics.median(whole), 2), "cpu_seconds": round(statistics.median(cpu), 2)}
            print(json.dumps({"benchmark": benchmark, "points": points, **line}), flush=True)


def _seconds(command: list[str], work: str) -> tuple[float, float]:
    """A command of launch/ by the clock, and of the processor."""
    begin, before = time.perf_counter(), os.times()
    script, *arguments = command
    subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *arguments],
        cwd=work, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begin, used


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or ("1000",)):
        measure(count)
