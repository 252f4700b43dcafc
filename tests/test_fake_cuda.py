"""On a GPU a training step never waits for the host, nor mixes devices: shown on a fake one, for every model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_steps import FAULTS, WAYS
from tests.fake_cuda import ROOT, build, environment, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"a fake GPU needs CUDA's torch and gcc: {missing()}")


def found(folder: Path, *ways: str) -> dict[str, dict[str, list[str]]]:
    """By way and case, what waits for the host."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.cuda_steps", *ways], cwd=ROOT, env=environment(build(folder)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    content: dict[str, dict[str, list[str]]] = json.loads(ended.stdout.splitlines()[-1])
    return content


@pytest.mark.parametrize("ways", [("fp32",), ("bf16",), ("fp16_clip_ema", "skip_clip_ema")], ids="+".join)
def test_no_step_waits_for_the_host_or_mixes_devices(ways: tuple[str, ...], tmp_path: Path) -> None:
    seen = found(tmp_path, *ways)
    assert {way: list(cases) for way, cases in seen.items()} == {way: WAYS[way][0] for way in ways}
    assert [(way, model, what) for way in ways for model, what in seen[way].items() if what] == []


def test_every_kind_of_fault_is_found_where_it_is(tmp_path: Path) -> None:
    seen = found(tmp_path, "faults")["faults"]
    assert seen.keys() == FAULTS.keys()
    for fault, what in seen.items():
        assert what and all("at tests/cuda_steps.py:" in place for place in what), (fault, what)
