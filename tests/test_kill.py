"""Killed at random moments and restarted, a run ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.launch.support import uncounted
from tests.runs import ROOT


@pytest.mark.timeout(3600)
def test_no_kill_changes_the_final_weights() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), "--trials", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=uncounted(os.environ),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["survived"] == outcome["trials"] == 2
    assert outcome["kills"] > 0
