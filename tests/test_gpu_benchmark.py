"""What is prepared for a GPU runs: here on the CPU, where most of it is skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runs import ROOT, environment, write_shards

SKIPPED = {"noise", "no_sync", "parity", "norms", "ranks", "killed", "deterministic"}
SPEEDS = {"stackedwae", "stackedwae_svhn", "stackedwae_celeba", "wae_mmd", "swae_celeba"}


def gpu(out: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, where no GPU is seen."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(out), *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, timeout=3000, check=False, env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {f.stem: json.loads(f.read_text()) for f in out.glob("*.json")}


def test_every_part_has_its_result_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    out, digits, faces = tmp_path / "out", tmp_path / "digits", tmp_path / "faces"
    write_shards(digits, shape=(1, 28, 28))
    (faces / "train").mkdir(parents=True)  # looks prepared, and is not
    options = ("--mnist", digits, "--faces", faces)
    done = gpu(out, *options)
    assert done.returncode == 1, done.stderr
    found = results(out)
    states = {name: r["state"] for name, r in found.items()}
    assert states == {
        **dict.fromkeys(SKIPPED, "skipped"), **{f"speed_{m}": "ok" for m in SPEEDS}, "packed": "ok",
        "train_celeba10": "failed", "train_swae": "failed", "train_grid": "ok",
    }  # fmt: skip
    assert {found[name]["why"] for name in SKIPPED} == {"no GPU"}
    assert {row.get("model") for r in found.values() for row in r["rows"] if row.get("images_per_s", 0) > 0} >= SPEEDS
    assert [row["state"] for row in found["train_grid"]["rows"]] == ["finished", "finished"]
    table = (out / "table.md").read_text()
    assert all(f"| {name} | {state} |" in table for name, state in states.items())
    assert "data.path" in (out / "train_swae.log").read_text()

    before = {f: f.read_bytes() for f in out.glob("*.json")}
    again = gpu(out, "--minutes", "0.1")  # 6 seconds: what has failed is not begun, and nothing else is left
    assert again.returncode == 1
    assert before == {f: f.read_bytes() for f in out.glob("*.json")}
    for name in ("train_celeba10", "train_swae"):
        (out / f"{name}.json").write_text(json.dumps(found["train_grid"]))
    calm = gpu(out)
    assert (calm.returncode, calm.stdout.splitlines()[0][:2]) == (0, "# ")  # no part, the table alone
    assert before[out / "train_grid.json"] == (out / "train_grid.json").read_bytes()
