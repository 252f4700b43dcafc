"""A real SLURM and a tiny data set for the launcher's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.support import CLUSTER, Cluster, uncounted, write_noise

PORT = "27110"  # not the default, so that a cluster a person is using stays as it is


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 random training images of 28 x 28, 64 to validate and 64 to test."""
    path = tmp_path_factory.mktemp("shards") / "noise"
    write_noise(path, (28, 28, 1), train=256, heldout=64)
    return path


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """SLURM with two nodes, started from nothing and removed at the end."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None or os.geteuid() != 0:
        pytest.skip("needs root, and apt-get install slurm-wlm slurmdbd munge mariadb-server")
    state = Path(tempfile.mkdtemp(prefix="dtrain-"))  # short: sockets lie in it
    environment = {**uncounted(os.environ), "DTRAIN_CLUSTER": str(state), "DTRAIN_CLUSTER_PORT": PORT}
    environment["DTRAIN_CLUSTER_ARRAY_SIZE"] = "20"  # the grid of 25 points is two arrays
    try:
        subprocess.run([CLUSTER, "up"], env=environment, check=True)
        yield Cluster(state, environment)
    finally:
        subprocess.run([CLUSTER, "clean"], env=environment, check=True)
