"""Shards that every test of a whole run reads, and a disk that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.runs import write_shards

# The same examples every time, and none that fails because other tests have the processors.
settings.register_profile("here", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

# Modules whose tests share a module's fixture, or the cluster: module -> the tests that stay on one worker.
TOGETHER = {
    "tests/launch/test_cluster.py": "cluster",
    "tests/launch/test_faults.py": "cluster",
    "tests/launch/test_points.py": "points",
    "tests/data_prep/test_writer.py": "writer",
    "tests/test_aeot_runs.py": "aeot",
    "tests/test_checkpoint.py": "checkpoint",
    "tests/test_compare.py": "compare",
    "tests/test_export.py": "export",
    "tests/test_fidelity.py": "fidelity",
    "tests/test_followup.py": "followup",
    "tests/test_hostile.py": "hostile",
    "tests/test_mixture.py": "mixture",
    "tests/test_packed.py": "packed",
    "tests/test_report.py": "report",
    "tests/test_sample.py": "sample",
    "tests/test_signals.py": "signals",
    "tests/test_stages.py": "stages",
    "tests/test_sync.py": "sync",
    "tests/test_trained.py": "trained",
    "tests/test_wheel.py": "wheel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups as of --dist loadgroup, which pytest-xdist 3.8 ignores without a word under pytest 9.2 (issue 1386)."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    config.option.loadscopereorder = False  # keep the order below
    return Grouped(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster's tests first, since they take the longest; none may be missing in TOGETHER."""
    for item in items:
        module, fixtures = item.nodeid.partition("::")[0], item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
        shared = "cluster" in fixtures or any(f.scope == "module" for found in fixtures.values() for f in found)
        if shared and module not in TOGETHER:
            raise pytest.UsageError(f"{module} has a fixture for several tests: name it in tests/conftest.py")
    items.sort(key=lambda item: TOGETHER.get(item.nodeid.partition("::")[0]) != "cluster")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 + 20 random labelled images of 6x6."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
