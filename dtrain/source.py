"""Which code made a run's weights: the hash of the project's own Python files. Without torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from dtrain.files import read_json

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"  # of a run that an earlier version began, or whose environment.json is gone


def beside() -> list[Path]:
    """The Python files that a project keeps beside dtrain; none where dtrain lies in an environment among others'."""
    return [] if any(ROOT.glob("dtrain-*.dist-info")) else sorted(ROOT.glob("*.py"))


def digest(files: Iterable[Path]) -> str:
    """12 hex digits of the files' names and contents."""
    found = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        found.update(f"{file.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:12]


def code_hash() -> str:
    """Of all that can change a result: dtrain's Python files and those beside it.

    Neither configurations, which a run freezes, nor the launcher. A sweep's copy of the code has the same hash.
    """
    return digest([*beside(), *sorted((ROOT / "dtrain").rglob("*.py"))])


def codes(run: Path) -> list[str]:
    """The hashes of the code that made a run's weights, that of the last start last."""
    found = read_json(run / "environment.json").get("code")
    words = [c for c in found if isinstance(c, str)] if isinstance(found, list) else []
    return [c for c in words if re.fullmatch(f"[0-9a-f]{{12}}|{UNKNOWN}", c)] or [UNKNOWN]


def extended_codes(run: Path | None) -> list[str]:
    """`codes` of a run that this process goes on with, from the weights of that run folder; None: it begins."""
    own = code_hash()
    return [*(c for c in (codes(run) if run else []) if c != own), own]
