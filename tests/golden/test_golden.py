"""The golden curves still come out."""

from __future__ import annotations

import json

import pytest

from tests.golden.curves import CURVES, FOLDER, STEPS, curve

ROUNDING = 1e-4  # relative: what the kernels of another processor's instructions make of 20 steps is below 1e-5


@pytest.mark.parametrize("name", CURVES)
def test_curve_is_unchanged(name: str) -> None:
    golden = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    assert len(golden) == STEPS
    for step, (old, new) in enumerate(zip(golden, curve(name), strict=True), start=1):
        assert new == pytest.approx(old, rel=ROUNDING, abs=1e-9), f"step {step}"
