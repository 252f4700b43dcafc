"""The golden curves still come out."""

from __future__ import annotations

import json

import pytest

from tests.golden.curves import CURVES, FOLDER, STEPS, curve


@pytest.mark.parametrize("name", CURVES)
def test_curve_is_unchanged(name: str) -> None:
    golden = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    assert len(golden) == STEPS
    for step, (old, new) in enumerate(zip(golden, curve(name), strict=True), start=1):
        assert new == pytest.approx(old, rel=1e-6, abs=1e-12), f"step {step}"
