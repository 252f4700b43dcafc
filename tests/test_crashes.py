"""A sample of the faults that `make crash-test` enumerates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crashes import KINDS, SCENARIOS, count_and_expect, points, survives

# Every so many-th point: a few of the slow scenarios, more of the fast ones.
EVERY = {"run": 97, "run that ends by patience": 193, "run of two ranks": 251}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_file_operation_changes_no_result(name: str, tmp_path: Path) -> None:
    count, expected = count_and_expect(SCENARIOS[name], tmp_path / "whole")
    assert count > 10
    tried = list(points(count, EVERY.get(name, 7), 3))
    assert len({kind for _, kind in tried}) == len(KINDS) or len(tried) < len(KINDS)
    for at, kind in tried:
        assert survives(SCENARIOS[name], tmp_path / f"{kind}{at}", at, kind, expected), f"{kind} at operation {at}"
