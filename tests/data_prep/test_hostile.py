"""Files made to do harm: each is refused by name in one line, without a traceback, a hang or a lost earlier split."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_prep.damage import (
    instead,
    odd_name,
    patched_member,
)
from tests.data_prep.hostile import HOSTILE
from tests.data_prep.refusing import (
    BATCH,
    FACES,
    TRAIN_LABELS,
    Damage,
    one_line,
    options,
    refused,
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "file", "damage"), [pytest.param(n, f, d, id=f"{n}: {what}") for n, what, f, d in HOSTILE]
)
def test_a_hostile_original_is_refused_by_name(
    earlier: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    file: str,
    damage: Damage,
) -> None:
    source, out = (Path(shutil.copytree(earlier(name) / part, tmp_path / part)) for part in ("in", "out"))
    damage(source)
    assert file in refused(capsys, name, source, out)
    assert not list(out.glob("*.incomplete/manifest.json"))


def test_a_hostile_original_is_refused_by_the_command_itself(earlier: Callable[[str], Path], tmp_path: Path) -> None:
    for name, damage, file in [
        ("mnist", instead(TRAIN_LABELS, os.mkfifo), TRAIN_LABELS),
        ("folder", odd_name(b"\xff.png"), "udcff.png"),
        ("folder", patched_member(6, 8, b"\1\0"), "zz.png"),
    ]:
        source = Path(shutil.copytree(earlier(name) / "in", tmp_path / file))
        damage(source)
        command = [sys.executable, "-m", "data_prep", *options(name, source, tmp_path / "out")]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert run.returncode == 2 and file in one_line(run.stderr)
        assert not list(tmp_path.glob("out/*/manifest.json"))


def test_an_unreadable_file_is_named(
    earlier: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    for name, file in (("mnist", TRAIN_LABELS), ("celeba", FACES), ("cifar10", BATCH), ("folder", "train/a")):
        source = Path(shutil.copytree(earlier(name) / "in", tmp_path / name))
        (source / file).chmod(0)
        assert Path(file).name in refused(capsys, name, source, tmp_path / "out")
        (source / file).chmod(0o700)
