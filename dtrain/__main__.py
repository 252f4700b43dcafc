"""python -m dtrain key=value …, or dtrain key=value …: compose the configuration and train.

python -m dtrain experiment=quickstart            one process
torchrun --standalone --nproc-per-node 2 -m dtrain experiment=quickstart    two; srun does it too
python -m dtrain model=vae data=mnist trainer.max_steps=500 optim.default.lr=3e-4
python -m dtrain --config runs/NAME/config.yaml   a frozen configuration
python -m dtrain … --cfg                          print the configuration (Hydra's --cfg job)
python -m dtrain model=vae data=mnist --help      the keys of another model and other data
dtrain-sweep -m … seed='range(0,5)'               grids of runs (Hydra's -m): dtrain-sweep --help
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dtrain import compose as configs
from dtrain.allocator import keep_freed_memory
from dtrain.config import ConfigError, run_dir
from dtrain.files import read_json


def main(argv: list[str]) -> int:
    _end_with_torchrun()
    keep_freed_memory()
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    try:
        if {"-h", "--help"} & set(argv):
            from dtrain import usage  # loads the model's class, and so torch

            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # --help | head
            print(f"{__doc__}\n{usage.text([a for a in argv if not a.startswith('-')])}")
            return 0
        shown = "--cfg" in argv
        cfg = _read([a for a in argv if not (shown and a in ("--cfg", "job"))])
        if not (shown or rank):
            print(_standing(run_dir(configs.typed(cfg))), flush=True)
        with _loading():
            config = configs.read(cfg)  # the model's module loads torch, which takes seconds
            if shown:
                print(OmegaConf.to_yaml(cfg), end="")
                return 0
            from dtrain.run import run

        cfg.run.pause_at = None  # of this start, and not of the run
        return run(config, OmegaConf.to_yaml(cfg, resolve=True))
    except KeyboardInterrupt:  # before the run listens: nothing is lost
        return 128 + signal.SIGINT
    except ConfigError as e:
        if rank:
            # Rank 0 says the same, and then torchrun or srun ends this process. Where it does not, this rank alone
            # has the trouble (shards missing on one node) and says so itself.
            time.sleep(10)
        print(f"dtrain: {f'rank {rank}: ' if rank else ''}{e}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Modules stay: to look for garbage among their many objects takes a seventh of the time, and finds none."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_with_torchrun() -> None:
    """A rank whose torchrun is killed is asked to stop too, and trains on for nobody."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() == 1:  # it was killed before this
            sys.exit(128 + signal.SIGTERM)


def _read(argv: list[str]) -> DictConfig:
    if argv[:1] == ["--config"]:
        if len(argv) != 2:
            raise ConfigError("--config takes one file and nothing else: a frozen configuration is not overridden")
        return configs.load(Path(argv[1]))
    flags = [a for a in argv if a.startswith("-")]
    if flags:
        raise ConfigError(f"unknown option {flags[0]}; sweeps (-m) are started with dtrain-sweep, or launch/sweep.py")
    return configs.compose(argv)


def _standing(folder: Path) -> str:
    """The run folder, and how far the run in it has come."""
    if not (folder / "config.yaml").exists():
        return f"run folder {folder}: a new run"
    status = read_json(folder / "status.json")
    stands = ", step {step} of {max_steps}".format(**status) if {"step", "max_steps"} <= status.keys() else ""
    return f"run folder {folder}: {status.get('state', 'begun')}{stands}"


def command() -> None:
    """The command line; ends the process."""
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a network thread that drops its last tensor while the interpreter finalises aborts the process.
    os._exit(code)


if __name__ == "__main__":
    command()
