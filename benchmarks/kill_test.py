"""Kills a run again and again, at random moments: are the final weights those of an undisturbed run?

  python benchmarks/kill_test.py --trials 20

Two processes train a small StackedWAE that saves every few steps. Every trial kills all of them with SIGKILL one to
four times at random moments (mid-save included), restarts the same command each time, and compares the weights bit
by bit at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from dtrain.checkpoint import steps, stored_keys

STEPS = 60
OVERRIDES = (
    "experiment=quickstart", "model.levels=[{latent:8,hidden:64},{latent:2,hidden:32}]", f"trainer.max_steps={STEPS}",
    "trainer.checkpoint.every=3", "trainer.log_every=5", "trainer.batch_size=32", "evaluate.points=20",
    "evaluate.samples=4", "evaluate.rows=2", "evaluate.grid=2",
)  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(run: Path, shards: Path, world: int = 2, own: Sequence[str] = ()) -> list[subprocess.Popen[bytes]]:
    """Ranks without torchrun, so that nothing but the kill ends them. own: more overrides."""
    arguments = [sys.executable, "-m", "dtrain", *OVERRIDES, *own, f"run.dir={run}", f"data.path={shards}"]
    processes, port = [], free_port()
    for rank in range(world):
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (run.parent / f"{run.name}.{rank}.log").open("ab") as log:
            processes.append(subprocess.Popen(arguments, env=os.environ | variables, stdout=log, stderr=log))
    return processes


def undisturbed(run: Path, shards: Path, world: int = 2, own: Sequence[str] = ()) -> float:
    """Trains to the end; seconds of stepping and saving."""
    for r in start(run, shards, world, own):
        if r.wait():
            raise RuntimeError(Path(f"{run}.0.log").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if line["kind"] == "train"]
    return float(times[-1] - times[0])


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = steps(run / "checkpoints")[-1]
    assert path.name == f"step-{STEPS:08d}", path
    reader = dcp.FileSystemReader(path)
    sizes = {k: m.size for k, m in reader.read_metadata().state_dict_metadata.items()}
    kinds = {k: m.properties.dtype for k, m in reader.read_metadata().state_dict_metadata.items()}
    state = {k: torch.empty(sizes[k], dtype=kinds[k]) for k in stored_keys(path)}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def wait_for_steps(run: Path, since: float, ranks: list[subprocess.Popen[bytes]]) -> None:
    """Until the run takes steps again (its heartbeat is newer than `since`) or has ended."""
    while any(r.poll() is None for r in ranks):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((run / "status.json").read_text()).get("time", 0) > since:
                return
        time.sleep(0.01)


def trial(
    run: Path,
    shards: Path,
    expected: dict[str, torch.Tensor],
    seconds: float,
    rng: random.Random,
    world: int = 2,
    own: Sequence[str] = (),
) -> int:
    """Kills one to four times and then lets the run end; the number of kills, or -1 if the weights differ."""
    kills = 0
    for _ in range(rng.randint(1, 4)):
        begin, ranks = time.time(), start(run, shards, world, own)
        if rng.random() < 0.8:  # else anywhere in the start
            wait_for_steps(run, begin, ranks)
        deadline = time.monotonic() + rng.uniform(0, seconds)
        while time.monotonic() < deadline and any(r.poll() is None for r in ranks):
            time.sleep(0.005)
        kills += any(r.poll() is None for r in ranks)
        for r in ranks:
            r.send_signal(signal.SIGKILL)
        for r in ranks:
            r.wait()
    for r in start(run, shards, world, own):
        if r.wait():
            raise RuntimeError(f"the run did not end: {Path(f'{run}.0.log').read_text()}")
    found = weights(run)
    same = found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    return kills if same else -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        shards, whole = Path(folder) / "digits", Path(folder) / "whole"
        subprocess.run(
            [sys.executable, "-m", "data_prep", "digits", "--out", str(shards)], check=True, stdout=sys.stderr
        )
        begin = time.monotonic()
        seconds = undisturbed(whole, shards)
        say(f"undisturbed: {time.monotonic() - begin:.1f} s")
        expected, survived, kills = weights(whole), 0, 0
        for i in range(arguments.trials):
            count = trial(Path(folder) / f"trial{i}", shards, expected, seconds, rng)
            survived, kills = survived + (count >= 0), kills + max(count, 0)
            say(f"trial {i}: {'same weights' if count >= 0 else 'DIFFERENT WEIGHTS'} after {count} kills")
    print(
        json.dumps(
            {"survived": survived, "trials": arguments.trials, "kills": kills, "training_s": round(seconds, 1)}
        )
    )


if __name__ == "__main__":
    main()
