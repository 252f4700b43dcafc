"""python -m launch.judge FOLDER: judges the rung that a halving sweep has come to, and submits what goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dtrain.config import ConfigError
from dtrain.files import locked
from launch.halving import OUT, Halving
from launch.points import with_pause
from launch.requeue import say
from launch.settings import launcher_from
from launch.standing import ACTIVE, State, states
from launch.store import SweepFolder
from launch.submit import follow, submit

PATIENCE = 60.0  # seconds that the end of a job may take to be seen


def judge(path: Path) -> None:
    """Does nothing where there is nothing to judge: the sweep's own command may have come before. ConfigError."""
    sweep = SweepFolder.open(path)
    _settle(sweep)
    with locked(path.parent / "lock"):
        halving = Halving.open(path)
        if halving is None or halving.halted or halving.share is None:
            return
        found = states(sweep.points)
        last = sweep.submissions()[-1]
        if any(s.name in ACTIVE for s in halving.candidates(found)):
            if last.where == "slurm":
                follow(sweep, last)
            return
        now = halving.advanced(found, OUT)
        if now == halving:
            left = [s.entry.index for s in now.open_points(found) if s.name not in OUT]
            say(f"not judged: points {left} have ended too early; the sweep's command continues them")
            return
        now.write(path)
        say(now.standing(found, goes_on=True))
        if todo := now.open_points(found):
            yamls = {s.entry.index: with_pause(_config(sweep, s), now.share) for s in todo}
            submit(sweep, yamls, launcher_from(last.launcher), last.where, last.parallel)


def _settle(sweep: SweepFolder) -> None:
    """Waits until none of the candidates is under way, or PATIENCE is over."""
    begin = time.monotonic()
    while (halving := Halving.open(sweep.path)) and time.monotonic() - begin < PATIENCE:
        if not any(s.name in ACTIVE for s in halving.candidates(states(sweep.points))):
            return
        time.sleep(2.0)


def _config(sweep: SweepFolder, state: State) -> str:
    file = sweep.config(state.entry.index)
    if file is None:
        raise ConfigError(
            f"point {state.entry.index}: its configuration is gone; the sweep's command writes it again"
        )
    return file.read_text()


if __name__ == "__main__":
    try:
        judge(Path(sys.argv[1]))
    except ConfigError as error:
        say(f"judge: {error}")
        sys.exit(2)
