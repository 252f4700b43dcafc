"""A run keeps the memory that its tensors leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dtrain.allocator import keep_freed_memory
from tests.runs import ROOT

# After what every run passes: 6 blocks, one after the other, larger than glibc ever keeps by itself.
PROGRAM = """
from resource import RUSAGE_SELF, getrusage
from dtrain.__main__ import main
assert main(["--no-such-option"]) == 2
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(6):
    b"x" * (40 << 20)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


def faults(**own: str) -> int:
    """Pages that the system had to give to the blocks."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment | own, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_run_gets_its_memory_from_the_system_once_unless_the_user_decides() -> None:
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("another C library")
    assert faults() * 3 < faults(MALLOC_TRIM_THRESHOLD_="131072")


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_the_users_own_variables_stand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1000000")
    assert not keep_freed_memory()


def test_the_users_own_tunables_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")
    assert not keep_freed_memory()
