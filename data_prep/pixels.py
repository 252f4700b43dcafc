"""Decodes a source into images.npy: in parallel, resumable after a kill, the same bytes for any number of workers.

Worker processes write their rows straight into the mapped file. Each finished chunk is noted in a journal with
the hash of its rows; a restart keeps the chunks whose rows still have it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.source import BrokenImageError, Pixels, Source, SourceError

CHUNK = 512
JOURNAL = "progress.jsonl"
_worker: tuple[Source, Pixels]  # of this worker process


def _start_worker(source: Source, file: Path) -> None:
    global _worker  # noqa: PLW0603 - a pool's initialiser has nowhere else to leave it
    _worker = (source, np.load(file, mmap_mode="r+"))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # a killed parent must not leave writers behind

    threading.Thread(target=follow, daemon=True).start()


def _digest(rows: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _fill(chunk: int) -> tuple[int, str, dict[int, str]]:
    """Reads one chunk's samples into their rows. Returns its number, the rows' hash, and what is broken."""
    source, images = _worker
    broken = {}
    begin = chunk * CHUNK
    end = min(begin + CHUNK, len(source))
    for sample in range(begin, end):
        try:
            if sample in source.broken:
                raise BrokenImageError(source.broken[sample])
            row = source.read(sample)
            if row.shape != source.shape:
                raise BrokenImageError(f"has shape {row.shape}, the others {source.shape}")
            images[sample] = row
        except BrokenImageError as e:
            broken[sample] = str(e)
            images[sample] = 0
    return chunk, _digest(images[begin:end]), broken


def _reserve(file: Path, shape: tuple[int, ...]) -> None:
    """images.npy of its full size, really allocated: a full disk must fail here, not as a SIGBUS in a worker."""
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    del images
    with file.open("r+b") as f:
        os.posix_fallocate(f.fileno(), 0, file.stat().st_size)


def _journal(work: Path, key: str, shape: tuple[int, ...]) -> dict[int, dict[int, str]]:
    """Chunk → its broken samples, of the chunks of an interrupted run that still stand, if it had the same key."""
    stands: dict[int, dict[int, str]] = {}
    try:
        lines = [
            json.loads(line) for line in (work / JOURNAL).read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]
        images = np.load(work / "images.npy", mmap_mode="r")
        if not lines or lines[0]["key"] != key or images.shape != shape:
            return {}
        for line in lines[1:]:
            begin = line["chunk"] * CHUNK
            if _digest(images[begin : begin + CHUNK]) == line["sha256"]:
                stands[line["chunk"]] = {int(sample): why for sample, why in line["broken"].items()}
    except Exception:  # a power cut leaves almost anything: start again
        return {}
    return stands


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _results(pool: ProcessPoolExecutor, todo: list[int]) -> Iterator[tuple[int, str, dict[int, str]]]:
    """What `_fill` returns, chunk by chunk. SourceError if a worker is killed: the pool has ended the others then."""
    try:
        yield from pool.map(_fill, todo)
    except BrokenProcessPool as e:
        raise SourceError(
            "a worker process was killed, perhaps for want of memory: the same command continues, and fewer "
            "--workers need less"
        ) from e


def read_pixels(source: Source, work: Path, key: str, workers: int, skip_broken: bool) -> dict[int, str]:
    """Fills work/images.npy, uint8 [N, H, W, C]. Returns the broken samples, whose rows are zero.

    key: whatever the pixels depend on; an interrupted run with another key is not continued. Raises SourceError
    at the first broken sample unless skip_broken.
    """
    shape = (len(source), *source.shape)
    broken: dict[int, str] = {}
    done: set[int] = set()
    for chunk, found in _journal(work, key, shape).items():
        done.add(chunk)
        broken |= found
    if not done:
        _reserve(work / "images.npy", shape)
        (work / JOURNAL).write_text(json.dumps({"key": key}) + "\n")
    todo = [c for c in range(-(-len(source) // CHUNK)) if c not in done]
    _refuse(source, broken, skip_broken)
    with ExitStack() as stack:
        journal = stack.enter_context((work / JOURNAL).open("a"))
        bar = stack.enter_context(_bar())
        task = bar.add_task(work.stem, total=len(source), completed=min(len(done) * CHUNK, len(source)))
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("fork"), _start_worker, (source, work / "images.npy")
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        for chunk, digest, found in _results(pool, todo):
            _refuse(source, found, skip_broken)
            broken |= found
            journal.write(json.dumps({"chunk": chunk, "sha256": digest, "broken": found}) + "\n")
            journal.flush()
            bar.advance(task, min(CHUNK, len(source) - chunk * CHUNK))
    return broken


def _refuse(source: Source, broken: dict[int, str], skip_broken: bool) -> None:
    if broken and not skip_broken:
        sample, why = min(broken.items())
        more = f" (and {len(broken) - 1} more in its chunk)" if len(broken) > 1 else ""
        raise SourceError(
            f"{source.names[sample]} {why}{more}: replace it, or leave such samples out with --skip-broken"
        )


def drop_rows(file: Path, broken: dict[int, str]) -> npt.NDArray[np.int64]:
    """Closes the gaps that broken samples left in images.npy. Returns the kept samples' numbers."""
    images = np.load(file, mmap_mode="r")
    keep = np.setdiff1d(np.arange(len(images)), list(broken))
    if broken:
        whole = file.with_suffix(".whole")
        target = np.lib.format.open_memmap(whole, mode="w+", dtype=np.uint8, shape=(len(keep), *images.shape[1:]))
        for begin in range(0, len(keep), CHUNK):
            target[begin : begin + CHUNK] = images[keep[begin : begin + CHUNK]]
        target.flush()
        del target
        os.replace(whole, file)
    return keep
