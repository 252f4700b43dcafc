"""Checkpoints: staged at a step, written in the background, hashed, published by a rename, found again verified.

step-N.incomplete/ is written and hashed by all ranks, sealed by COMMITTED, which names every file with its sha256,
and renamed to step-N/. A folder without a COMMITTED that verifies does not count.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dtrain.config import CheckpointConfig
from dtrain.device import bind
from dtrain.faults import CheckpointError
from dtrain.files import read_json, sha256, sync
from dtrain.staging import HostBuffers
from dtrain.world import World

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is not a mistake

COMMITTED = "COMMITTED"
State = dict[str, Tensor]


def _seal(info: dict[str, Any]) -> bytes:
    body = json.dumps(info, sort_keys=True, indent=1)
    return f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n".encode()


def read_seal(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's COMMITTED. Raises CheckpointError if it is missing or damaged."""
    seal = path / COMMITTED
    if not seal.is_file():
        raise CheckpointError(f"{path} was not completed: {COMMITTED} is missing")
    content = seal.read_bytes()
    try:
        info: dict[str, Any] = json.loads(content[: content.rindex(b"}") + 1])
        if _seal(info) != content:
            raise ValueError
    except ValueError as e:
        raise CheckpointError(f"{seal} is damaged") from e
    return info


def verify(path: Path) -> dict[str, Any]:
    """The content of COMMITTED once every byte of the checkpoint has been checked. Raises CheckpointError."""
    info = read_seal(path)
    present = {f.name for f in path.iterdir()} - {COMMITTED}
    for name in sorted(present ^ set(info["files"])):
        raise CheckpointError(f"{path / name} is {'missing' if name in info['files'] else 'not part of it'}")
    for name, digest in info["files"].items():
        if sha256(path / name) != digest:
            raise CheckpointError(f"{path / name} is damaged: its sha256 is not the recorded one")
    return info


def steps(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first, verified or not."""
    return sorted(p for p in folder.glob("step-*") if not p.suffix)


def step_of(path: Path) -> int:
    """The step of a published checkpoint."""
    return int(path.name.split("-")[1])


class Checkpointer:
    """Saves and finds the checkpoints of one run. Every rank has one and calls the same methods in the same order.

    until: no checkpoint of a later step is found.
    """

    until = math.inf

    def __init__(self, folder: Path, settings: CheckpointConfig, world: World, report: Callable[[str], None]) -> None:
        self.folder, self.settings, self.world, self.report = folder, settings, world, report
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._succeeded = True
        self._host = HostBuffers(pinned=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is published."""
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, info: dict[str, Any]) -> None:
        """Copies the state now; writes it in the background, or before returning if not settings.asynchronous.

        state: flat, of tensors or DTensors. info: JSON, with "step". A failed write is reported, never raised.
        """
        import torch.distributed.checkpoint  # takes a second: not before the first step, nor beside a later one

        self.wait()
        self._succeeded = True
        copied = None
        if self.world.device.type == "cuda":
            staged = self._host.copy(state)  # before the next step, on the stream that it runs on
            copied = torch.cuda.Event()
            copied.record()
        else:
            staged = {k: v.detach().clone() for k, v in state.items()}
        arguments = (staged, info, copied)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()
        if not self.settings.asynchronous:
            self.wait()

    def wait(self) -> bool:
        """Returns once no save is under way: False if the last one failed, which is reported."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            self._succeeded = False
            self.report(f"checkpoint not saved, training goes on: {error}")
        return self._succeeded

    def _write(self, state: State, info: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        bind(self.world.device)
        final = self.path(info["step"])
        work = final.with_suffix(".incomplete")
        try:
            if copied is not None:
                copied.synchronize()
            self._collect(lambda: self._prepare(work))
            torch.distributed.checkpoint.save(
                state, checkpoint_id=work, process_group=self.world.saving, no_dist=self.world.size == 1
            )
            hashes = self._collect(lambda: self._hash_own(work))
            self._collect(lambda: self._publish(work, final, info, hashes))
        except BaseException as e:  # a full disk must not end the training; DCP's own errors are BaseExceptions
            self._error = e
            self.tidy()

    def _collect(self, action: Callable[[], dict[str, str]]) -> dict[str, str]:
        """Runs the action on every rank and merges what they return; raises on all of them if it failed on one."""
        try:
            own: Any = action()
        except Exception as e:  # whatever it is, the other ranks must not wait for this one
            own = f"rank {self.world.rank}: {e}"
        every = [own]
        if self.world.size > 1:
            every = [None] * self.world.size
            dist.all_gather_object(every, own, group=self.world.saving)
        failed = [r for r in every if isinstance(r, str)]
        if failed:
            raise CheckpointError("; ".join(failed))
        return {name: digest for r in every for name, digest in r.items()}

    def _prepare(self, work: Path) -> dict[str, str]:
        if self.world.main:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        return {}

    def _hash_own(self, work: Path) -> dict[str, str]:
        """Every rank hashes what it wrote, while it is in its page cache."""
        from dtrain.reader import METADATA

        prefixes = (f"__{self.world.rank}_", METADATA) if self.world.main else (f"__{self.world.rank}_",)
        own = [f for f in work.iterdir() if f.name.startswith(prefixes)]
        for file in own:
            sync(file)
        return {f.name: sha256(f) for f in own}

    def _publish(self, work: Path, final: Path, info: dict[str, Any], hashes: dict[str, str]) -> dict[str, str]:
        """Seals the folder, then gives it its name: under that name there is never an unsealed checkpoint."""
        if self.world.main:
            seal = work / COMMITTED
            seal.write_bytes(_seal({**info, "files": hashes}))
            sync(seal)
            sync(work)
            replaced = final.with_suffix(".replaced")  # of the same step: damaged, before its evaluation, a boundary
            shutil.rmtree(replaced, ignore_errors=True)
            if final.exists():
                os.replace(final, replaced)
            os.replace(work, final)
            sync(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
            self._prune()
        return {}

    def tidy(self) -> None:
        """Half-written checkpoints, of a kill or a full disk, go; one that was about to be replaced comes back.

        By rank 0 of the only run that trains in the folder, while nothing is being saved.
        """
        if not self.world.main:
            return
        for work in self.folder.glob("step-*.incomplete"):
            shutil.rmtree(work, ignore_errors=True)
        for replaced in self.folder.glob("step-*.replaced"):
            if replaced.with_suffix("").exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(replaced, replaced.with_suffix(""))

    def _prune(self) -> None:
        """Keeps the newest, the milestones and the best of the newest's stage."""
        every = steps(self.folder)
        best = next(self._best(), None)
        for path in every[: -self.settings.keep]:
            milestone = self.settings.milestones and step_of(path) % self.settings.milestones == 0
            if not milestone and path != best:
                going = path.with_suffix(".incomplete")  # what a kill leaves of it is no checkpoint
                os.replace(path, going)
                shutil.rmtree(going)

    def _best(self) -> Iterator[Path]:
        """The checkpoints of the newest one's stage that were the best so far when they were saved, newest first.

        By the metric that the newest one was judged by.
        """
        stage = metric = None
        for path in reversed(steps(self.folder)):
            try:
                info = read_seal(path)
            except CheckpointError:
                continue
            if stage is None:
                stage, metric = info["stage"], info["judged"]["metric"]
            if info["stage"] != stage:
                return
            if info["value"] is not None and info["judged"]["metric"] == metric:
                yield path

    def latest(self, best: bool = False) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, on all ranks the same; damaged ones are reported and passed over.

        best: only one that was the best of the newest's stage when it was saved.
        """
        found = None
        if self.world.main:
            for path in self._best() if best else reversed(steps(self.folder)):
                if step_of(path) > self.until:
                    continue
                try:
                    found = (path, verify(path))
                    break
                except CheckpointError as e:
                    self.report(f"checkpoint passed over: {e}")
        return self.world.share(found)

    def result(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies; of a finished run that stops by patience the best."""
        found = self.latest()
        finished = read_json(self.folder.parent / "status.json").get("state") == "finished"
        if self.world.share(bool(found and finished and found[1]["judged"]["patience"])):
            return self.latest(best=True) or found
        return found

    def verified(self, path: Path) -> tuple[Path, dict[str, Any]] | None:
        """One checkpoint, on all ranks the same; None, which is reported, if it does not verify."""
        found = None
        if self.world.main:
            try:
                found = (path, verify(path))
            except CheckpointError as e:
                self.report(str(e))
        return self.world.share(found)

    def load(self, path: Path, state: State, part: bool = False) -> None:
        """Reads a checkpoint into the state's tensors, in place, whatever wrote it. CheckpointError on a mismatch.

        part: the state is but a part of what was saved.
        """
        import torch.distributed.checkpoint as dcp

        from dtrain.reader import Reader

        known = Reader(path).read_metadata().state_dict_metadata
        stored = set(known)
        missing, surplus = sorted(set(state) - stored), [] if part else sorted(stored - set(state))
        if missing or surplus:
            key = (missing or surplus)[0]
            raise CheckpointError(f"{path} {'lacks' if missing else 'has a surplus'} {key}: it is of another model")
        for key, tensor in state.items():
            size = getattr(known[key], "size", tensor.shape)
            if size != tensor.shape:
                raise CheckpointError(
                    f"{path}: {key} is {list(size)} there, {list(tensor.shape)} here: it is of another model"
                )
        dcp.load(state, storage_reader=Reader(path), process_group=self.world.saving, no_dist=self.world.size == 1)

    def load_result(self, path: Path, state: State) -> None:
        """Reads model.<name> of a checkpoint into the state, where it keeps averaged weights those."""
        stored = stored_keys(path)
        averages = {name: name.replace("model.", "average.", 1) for name in state}
        named = {average if (average := averages[name]) in stored else name: t for name, t in state.items()}
        self.load(path, named, part=True)


def folder_of(path: Path) -> Path:
    """The run folder of a checkpoint; a run folder itself."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def stored_keys(path: Path) -> set[str]:
    """The names of the tensors in a checkpoint."""
    from dtrain.reader import Reader

    return set(Reader(path).read_metadata().state_dict_metadata)
