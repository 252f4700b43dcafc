"""The tables of docs/results.md are what the stored metrics files say."""

from __future__ import annotations

import gzip
import json
import runpy
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "results.py"


@pytest.fixture
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def test_the_tables_in_the_repository_are_up_to_date() -> None:
    assert subprocess.run([sys.executable, TOOL, "--check"], check=False).returncode == 0


def test_a_cell_is_mean_and_deviation_over_the_stored_runs() -> None:
    found = []
    for seed in range(3):
        with gzip.open(ROOT / "docs" / "results" / f"aeot_mnist_s{seed}.jsonl.gz", "rt") as f:
            last = [json.loads(line) for line in f][-1]
        found.append(last["w2/mapped"] / last["w2/floor"])
    row = next(r for r in (ROOT / "docs" / "results.md").read_text().splitlines() if "the paper's form**" in r)
    assert row.split("|")[-2].strip() == f"{statistics.fmean(found):.2f} ± {statistics.stdev(found):.2f}"


def test_a_number_typed_by_hand_is_found_and_made_anew(tool: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert tool["rendered"](page.replace("1.37 ±", "1.36 ±")) == page
    with pytest.raises(SystemExit, match="has no table nowhere"):
        tool["rendered"]("<!-- table: nowhere -->\n<!-- end -->")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.98212], "0.982"),
        ([33.44, 35.0], "34.2 ± 1.1"),
        ([1234.5], "1,234"),
        ([0.01584, 0.0162], "0.0160 ± 0.0003"),
    ],
)
def test_numbers_have_three_digits(tool: dict[str, Any], values: list[float], text: str) -> None:
    assert tool["cell"](values) == text


def test_a_column_may_be_of_the_validation_split(tool: dict[str, Any]) -> None:
    with gzip.open(ROOT / "docs" / "results" / "stacked_long_s0.jsonl.gz", "rt") as f:
        lines = [json.loads(line) for line in f]
    of = {line["split"]: line["mse/level1"] for line in lines if line["kind"] == "evaluation"}
    assert of["valid"] != of["test"]
    assert tool["value"]("stacked_long_s0", "valid: mse/level1", 1) == of["valid"]
    assert tool["value"]("stacked_long_s0", "mse/level1", 1) == of["test"]


def test_a_curve_is_of_the_validation_split_against_images(tool: dict[str, Any]) -> None:
    with gzip.open(ROOT / "docs" / "results" / "faces_wae_s0.jsonl.gz", "rt") as f:
        lines = [line for line in map(json.loads, f) if line["kind"] == "evaluation" and line["split"] == "valid"]
    images, sharpness = tool["curve"]("faces_wae_s0", "sharpness/imagenet/normal")
    assert images == [128, 256, 384, 512, 640]
    assert sharpness == [line["sharpness/imagenet/normal"] for line in lines]
