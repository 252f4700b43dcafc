"""Packs: points of one architecture that one job trains in one process (`sweep.pack`), by `dtrain.packed`.

A pack goes by its first point: its number is the array's task, and its log is that of all of them, each line with the
place of the member in brackets. The rest is each point's own: folder, events, mark of a cancellation.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from dtrain.config import Config, ConfigError
from dtrain.files import held
from launch import slurm
from launch.again import again, note_unseen_end, patience, stuck
from launch.requeue import Attempt, outcome, say, step
from launch.settings import Launcher, launcher_from
from launch.store import Submission, SweepFolder, read_status


def grouped(configs: Mapping[int, Config], size: int | str, launcher: Launcher) -> list[list[int]]:
    """The points, given by index, in packs of at most `size` of one architecture. ConfigError where one cannot be.

    auto: all of an architecture that can be a pack, where a run is one process with a GPU of its own.
    """
    alone = launcher.ranks == 1 and launcher.points_per_gpu == 1
    if size == 1 or (size == "auto" and not (alone and launcher.gpus)):
        return []
    if not alone:
        raise ConfigError(
            f"sweep.pack={size}: a pack is one process with a GPU of its own; the launcher asks for more"
        )
    from dtrain.alike import architecture, check_alike  # loads torch

    alike: dict[str, list[int]] = {}
    for index, config in configs.items():
        alike.setdefault(architecture(config), []).append(index)
    found = []
    for indices in alike.values():
        try:
            check_alike([configs[i] for i in indices])
            _check_model(configs[indices[0]])
        except ConfigError:
            if size != "auto":
                raise
            continue
        most = len(indices) if isinstance(size, str) else size
        found += [indices[i : i + most] for i in range(0, len(indices), most)]
    return sorted(found)


def _check_model(config: Config) -> None:
    import torch

    from dtrain.alike import check_algorithm
    from dtrain.build import build_algorithm, facts, open_data

    with torch.device("meta"):  # shapes without memory
        check_algorithm(build_algorithm(config, facts(open_data(config)[0])), config)


def run_pack(submission: Submission, pack: Sequence[int]) -> int:
    """Runs the points of a pack until none of them is to go on here. Returns the last exit code.

    One that is cancelled stops all of them, which have saved then; the others start again at once.
    """
    entries = SweepFolder.open(submission.path.parents[1]).points
    name = os.environ.get("SLURM_JOB_ID", f"pid {os.getpid()}")
    attempt, code = None, 0
    with ExitStack() as stack:
        going = list(_held(submission, pack, entries, name, stack))
        while going := [i for i in going if not submission.cancelled(i).exists()]:
            restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            for i in going:
                submission.add_event(i, "start", job=name, restart=restart)
            local = submission.where == "local"

            def marked(going: Sequence[int] = tuple(going)) -> bool:
                return any(submission.cancelled(i).exists() for i in going)

            attempt = Attempt(*_command(submission, going), local, marked if local else None, attempt)
            code = attempt.wait()
            ends = {i: _end(submission, i, entries[i].run, code, name) for i in going}
            going = [i for i in going if ends[i] in ("stopped", "killed")]
            left = [i for i in going if not submission.cancelled(i).exists()]
            if len(left) < len(going) and not attempt.signalled:
                say(f"{len(going) - len(left)} of the pack cancelled: the others go on")
                continue
            if not left or not again(submission, left[0], ends[left[0]], attempt.asked):
                break
    return code


def _held(
    submission: Submission, pack: Sequence[int], entries: Sequence[Any], name: str, stack: ExitStack
) -> Iterator[int]:
    """The points of the pack that may start, each with its run's lock."""
    for i in pack:
        if submission.cancelled(i).exists() or read_status(entries[i].run).get("state") == "finished":
            continue
        run = entries[i].run
        holder = stack.enter_context(held(run / "lock", name, partial(patience, run, name)))
        if holder is not None:
            say(f"{entries[i].run} is being run by job {holder}: it is left out")
            submission.add_event(i, "elsewhere", job=name, by=holder)
            continue
        note_unseen_end(submission, i, entries[i].run)
        if not stuck(submission, i):
            yield i


def _command(submission: Submission, going: Sequence[int]) -> tuple[list[list[str]], list[Mapping[str, str]]]:
    launcher = launcher_from(submission.launcher)
    program = ["-m", "dtrain.packed", *(str(submission.config(i)) for i in going)]
    if submission.where == "slurm":
        return [[*step(1), *program]], [launcher.threads()]
    return [[sys.executable, "-u", *program]], [launcher.threads()]


def _end(submission: Submission, index: int, run: Any, code: int, name: str) -> str:
    """Notes how a point of a pack has ended: as its own status says, else as the process did."""
    status = read_status(run)
    state = status.get("state", "")
    how = str(state) if state in ("finished", "failed", "paused", "stopped") else outcome(code or 1, status)
    submission.add_event(index, "end", job=name, how=how, code=code, step=status.get("step", 0))
    return how


def cancel_tasks(submission: Submission, indices: Sequence[int]) -> bool:
    """On SLURM: ends the tasks whose points are all over or marked. Whether SLURM agreed.

    A task that others are in goes on: points that share its GPU look at their marks, a pack is told to stop and does.
    """
    whole, parts = dict[str, None](), dict[str, None]()
    for i in indices:
        array, task = submission.task(i)
        if all(map(submission.over, submission.together(i))):
            whole[f"{array}_{task}"] = None
        elif len(submission.pack(i)) > 1:
            parts[f"{array}_{task}"] = None
    agreed = not whole or slurm.cancel(*whole)
    return (not parts or slurm.signal_steps(signal.SIGUSR2, *parts)) and agreed
