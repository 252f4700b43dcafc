"""A part of benchmarks/gpu.py in its own process: its rows go to the result file as they come."""

from __future__ import annotations

import importlib
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtrain.allocator import keep_freed_memory
from dtrain.files import write_json

if TYPE_CHECKING:
    from benchmarks.gpu import Given, Part

Rows = Iterator[dict[str, Any]]


class Unfinished(Exception):
    """A training was stopped and saved: it goes on in the next call."""


def here() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def case(given: Given, name: str, check: Callable[[], dict[str, Any]], needs: float = 5.0) -> dict[str, Any]:
    """A row: what `check` finds; an error is what it says, and lets the other cases go on.

    needs: seconds; a row that lacks time says so.
    """
    if given.left < needs:
        return {"case": name, "missing": "time"}
    try:
        return {"case": name, **check()}
    except ModuleNotFoundError as e:
        return {"case": name, "missing": e.name}
    except Exception as e:
        traceback.print_exc()
        return {"case": name, "ok": False, "error": f"{type(e).__name__}: {str(e).strip().splitlines()[:1]}"}


def child(part: Part, given: Given) -> None:
    """Runs the part and ends the process."""
    os.setsid()  # so that the part ends with all that it has started
    log = os.open(given.out / f"{part.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep_freed_memory()
    if given.tiny:
        torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "part": part.name, "state": "failed", "why": "it was ended at its time limit, or by a crash", "rows": [],
        "card": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "tiny": given.tiny, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    _run(part, given, cuda, found, given.out / f"{part.name}.json")
    os._exit(0)  # nothing that the part leaves behind may keep it


def _run(part: Part, given: Given, cuda: bool, found: dict[str, Any], file: Path) -> None:
    begin = time.monotonic()
    write_json(file, found)
    try:
        state, why = _rows(part, given, cuda, found, file)
    except Unfinished as e:
        state, why = "unfinished", str(e)
    except BaseException as e:
        traceback.print_exc()
        state, why = "failed", f"{type(e).__name__}: {e}"
    write_json(file, found | {"state": state, "why": why, "seconds": round(time.monotonic() - begin, 1)})


def _rows(part: Part, given: Given, cuda: bool, found: dict[str, Any], file: Path) -> tuple[str, str]:
    """Fills found["rows"], and writes them as they come; the state of the part, and why."""
    if part.cuda and not cuda:
        return "skipped", "no GPU"
    if part.data and getattr(given, part.data) is None:
        return "skipped", f"no --{part.data}"
    function = getattr(importlib.import_module(part.module), part.function)
    for row in function(given, *([part.argument] if part.argument else [])):
        found["rows"].append(row)
        write_json(file, found)
    wrong = [row["case"] for row in found["rows"] if row.get("ok") is False]
    return ("failed", f"not so: {', '.join(wrong)}") if wrong else ("ok", "")
