"""The loop: step, log, evaluate, save, stop on signal; everything mechanical that an algorithm need not know."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dtrain import state as states
from dtrain.checkpoint import Checkpointer, CheckpointError, stored_keys
from dtrain.config import Config
from dtrain.data.batch import Batch
from dtrain.data.build import Loader
from dtrain.distributed import World, average_buffers, distribute
from dtrain.evaluate import Interrupted, evaluate
from dtrain.faults import NonFinite, StopSignal, nonfinite
from dtrain.log import Log
from dtrain.models.base import Algorithm
from dtrain.update import Updater

STOPPED = 75  # EX_TEMPFAIL: stopped on request, the same command continues


class Stream:
    """The training batches, counting images and the seconds spent waiting for them."""

    def __init__(self, loader: Loader, batch_size: int, images: int = 0) -> None:
        self.images, self.waited, self._size = images, 0.0, batch_size
        self._batches = loader.batches(images)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - begin
        self.images += self._size
        return batch


class Trainer:
    """Trains one algorithm in one run folder until max_steps, from its latest checkpoint if there is one."""

    def __init__(self, config: Config, algorithm: Algorithm, train: Loader, test: Loader, world: World, run: Path) -> None:
        settings = config.trainer
        self.config, self.settings, self.world, self.run = config, settings, world, run
        self.algorithm, self.train, self.test = algorithm, train, test
        distribute(
            algorithm, world, strategy=settings.strategy, shard_size=settings.shard_size,
            sync_batchnorm=settings.sync_batchnorm,
        )  # fmt: skip
        self.updater = Updater(algorithm, config.optim, settings, world, settings.max_steps * settings.batch_size)
        self.step = 0
        self.skipped = 0
        self.checkpoints = Checkpointer(run / "checkpoints", settings.checkpoint, world, self._report)
        self.stop = StopSignal(world)

    def fit(self) -> int:
        """Runs to the end: 0 when finished, STOPPED when asked to stop. Evaluates and draws at the end."""
        images = self._restore()
        self.log = Log(self.run, self.settings.max_steps, len(self.train), self.world.main, self.step)
        self.log.beat(self.step, state="running")
        self.stream = Stream(self.train, self.settings.batch_size, images)
        self._window = (time.perf_counter(), self.step)
        try:
            self.algorithm.train()
            while self.step < self.settings.max_steps:
                self._advance()
                if self.stop.agreed():
                    raise Interrupted
            self._finish()
        except Interrupted:
            self._save()
            self.checkpoints.wait()
            self.log.beat(self.step, state="stopped")
            self.log.line(f"stopped at step {self.step}; the same command continues from there")
            return STOPPED
        except BaseException as e:
            self.log.beat(self.step, state="failed", error=f"{type(e).__name__}: {e}")
            raise
        finally:
            self.stop.drain()
            self.checkpoints.wait()
            self.log.close()
        return 0

    def _advance(self) -> None:
        """One step, and what is due after it."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4099 + self.world.rank)
        self.updater.images = self.stream.images
        self.algorithm.step(self.stream, self.updater)
        self.step += 1
        settings = self.settings
        last = self.step == settings.max_steps
        save = last or self.step % settings.checkpoint.every == 0
        evaluation = bool(settings.evaluate_every) and self.step % (settings.evaluate_every or 1) == 0
        if (save or evaluation or self.step % settings.log_every == 0) and not self._log_step():
            return  # rolled back
        if save:
            self._save()
        if evaluation and not last:
            self._evaluate(pictures=False)
        self.log.beat(self.step)

    def _log_step(self) -> bool:
        """Reads and writes the metrics of the steps since the last time; False after a rollback."""
        values = self.updater.read(self.world)
        bad = nonfinite(values)
        if bad and not self._handle_nonfinite(bad):
            return False
        now, (begin, first) = time.perf_counter(), self._window
        count = self.step - first
        seconds = (now - begin) / count
        values |= {
            "images": self.stream.images,
            "images_per_s": self.settings.batch_size / seconds,
            "step_s": seconds,
            "data_wait_s": self.stream.waited / count,
            "memory_mb": self._memory(),
        }
        loss = sum(v for k, v in values.items() if k.startswith("loss/") and k.count("/") == 1)
        self.log.train(self.step, values, loss)
        self._window, self.stream.waited = (time.perf_counter(), self.step), 0.0
        return True

    def _memory(self) -> float:
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def _report(self, message: str) -> None:
        """From the checkpointer, also before the log is open."""
        if hasattr(self, "log"):
            self.log.event(self.step, "checkpoint", message)
        elif self.world.main:
            print(message, flush=True)

    def _handle_nonfinite(self, what: str) -> bool:
        raise NonFinite(f"{what}, at or before step {self.step}")

    def _info(self) -> dict[str, object]:
        return {"step": self.step, "images": self.stream.images, **states.settings(self.updater)}

    def _save(self) -> None:
        if not self.settings.sync_batchnorm:
            average_buffers(self.algorithm, self.world)
        self.updater.unfreeze()
        self.checkpoints.save(states.training_state(self.algorithm, self.updater), self._info())

    def _restore(self) -> int:
        """Continues from the newest checkpoint that verifies; returns the images seen."""
        found = self.checkpoints.latest()
        if found is None:
            return 0
        path, info = found
        states.restore_settings(self.updater, info, self.world.device)
        states.allocate(self.algorithm, self.updater, stored_keys(path))
        self.checkpoints.load(path, states.training_state(self.algorithm, self.updater))
        self.step = info["step"]
        return info["images"]

    def _evaluate(self, pictures: bool) -> dict[str, float]:
        average_buffers(self.algorithm, self.world)
        images = self.run / "images" if pictures else None
        with self.updater.averaged():
            values = evaluate(
                self.algorithm, self.test, self.world, self.config.evaluate, images, stop=self.stop.agreed
            )
        self.log.evaluation(self.step, values)
        return values

    def _finish(self) -> None:
        self._evaluate(pictures=True)
        self.checkpoints.wait()
        self.log.beat(self.step, state="finished", eta_s=0.0)
        self.log.line(f"finished: pictures in {self.run / 'images'}, numbers in {self.run / 'metrics.jsonl'}")
