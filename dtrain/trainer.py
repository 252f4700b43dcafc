"""The loop: step, log, evaluate, save, stop on signal; everything mechanical that an algorithm need not know."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from dtrain import state as states
from dtrain.checkpoint import Checkpointer, CheckpointError, stored_keys
from dtrain.config import Config, ConfigError
from dtrain.data.batch import Batch
from dtrain.data.build import Loader
from dtrain.distributed import average_buffers, distribute
from dtrain.evaluate import curves
from dtrain.evaluate.evaluator import Evaluator, Interrupted
from dtrain.faults import NonFinite, StopSignal, explain
from dtrain.files import STOPPED
from dtrain.log import Log
from dtrain.models.base import Algorithm
from dtrain.update import Updater
from dtrain.world import World


class Stream:
    """The training batches, counting images and the seconds spent waiting for them.

    The first is fetched at once: what a loader does but once, such as compiling, is not a wait of the first step.
    """

    def __init__(self, loader: Loader, batch_size: int, images: int = 0) -> None:
        self.images, self.waited, self._size = images, 0.0, batch_size
        batches = loader.batches(images)
        self._batches = chain([next(batches)], batches)

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

    def __init__(
        self, config: Config, algorithm: Algorithm, train: Loader, test: Loader, world: World, run: Path
    ) -> None:
        settings = config.trainer
        self.config, self.settings, self.world, self.run = config, settings, world, run
        self.algorithm, self.train, self.test = algorithm, train, test
        distribute(
            algorithm, world, strategy=settings.strategy, shard_size=settings.shard_size,
            sync_batchnorm=settings.sync_batchnorm, channels_last=settings.channels_last,
        )  # fmt: skip
        images = settings.max_steps * settings.batch_size * algorithm.batches_per_step
        self.updater = Updater(algorithm, config.optim, settings, world, images)
        self.step = 0
        self.saved: int | None = None
        every = settings.evaluate_every
        self.evaluate_every = -(-len(train) // settings.batch_size) if every == "epoch" else every
        self.best: float | None = None  # of checkpoint.best's metric
        self.worse = 0  # evaluations since then
        self.evaluation_due = False  # a stop came before it had ended
        self.mishaps = 0  # skipped steps or rollbacks
        self.checkpoints = Checkpointer(run / "checkpoints", settings.checkpoint, world, self._report)
        self.stop = StopSignal(world)
        cache = config.run.root / "statistics"
        self.evaluator = Evaluator(train, test, world, config.evaluate, cache, stop=self.stop.agreed)

    def fit(self) -> int:
        """Runs to the end: 0 when finished, STOPPED when asked to stop. Evaluates and draws at the end."""
        self.begin()
        try:
            if self.evaluation_due:
                value = self._judge()
                self.saved = None  # its checkpoint is without the metric
                self._save(value)
            while self.step < self.settings.max_steps and not self._out_of_patience():
                self.advance()
                if self.stop.agreed():
                    if self.step != self._window[1]:
                        self._log_step()  # nothing is saved unseen
                    raise Interrupted
            self._finish()
        except Interrupted:
            where = "from there" if self._save_surely() else "from the last checkpoint"
            self.log.beat(self.step, state="stopped")
            self.log.line(f"stopped at step {self.step}; the same command continues {where}")
            return STOPPED
        except BaseException as e:
            error = explain(e, self.world, self.step)
            self.log.beat(self.step, state="failed", error=f"{type(error).__name__}: {error}")
            raise error from (e if error is not e else None)
        finally:
            if not self.world.broken:
                self.stop.drain()
                self.checkpoints.wait()
            self.log.close()
        return 0

    def begin(self) -> None:
        """Continues from the newest checkpoint, or from the first image."""
        images = self._restore() or 0
        self.log = Log(self.run, self.settings.max_steps, len(self.train), self.world.main, self.step)
        self.log.rewind(self.step)
        self.log.beat(self.step, state="running")
        if self.algorithm.summary():
            self.log.line(self.algorithm.summary())
        self.stream = Stream(self.train, self.settings.batch_size, images)
        self._window = (time.perf_counter(), self.step)
        self.algorithm.train()
        if self.settings.on_nonfinite == "rollback" and self.saved is None:
            self._save()

    def evaluate(self, best: bool = False) -> None:
        """Evaluates and draws the newest checkpoint, or the best one. ConfigError if there is none."""
        self._restore(best)
        if self.saved is None:
            raise ConfigError(f"{self.run} has no checkpoint that verifies: there is nothing to evaluate yet")
        self.log = Log(self.run, self.step, len(self.train), self.world.main, self.step)
        self._evaluate(pictures=True)
        self.log.line(f"pictures in {self.run / 'images'}")
        self.log.close()

    def advance(self) -> None:
        """One step, and what is due after it."""
        settings, step = self.settings, self.step + 1
        last = step == settings.max_steps
        save = last or step % settings.checkpoint.every == 0
        evaluation = self.evaluate_every is not None and step % self.evaluate_every == 0
        evaluation &= not last or settings.checkpoint.best is not None  # the end has one of its own
        log = save or evaluation or step % settings.log_every == 0
        self._reseed()
        self.updater.begin(self.step, self.stream.images, measure=log)
        self.algorithm.step(self.stream, self.updater)
        self.step = step
        if log and not self._log_step():
            return  # rolled back
        value = self._judge() if evaluation else None
        if save or value is not None or self._out_of_patience():
            self._save(value)
        self.log.beat(self.step)

    def _reseed(self) -> None:
        """torch's generators, for networks that draw from them (dropout), so that no state need be saved."""
        seed = ((self.config.seed * 1_000_003 + self.step) * 4099 + self.world.rank) % 2**63
        # Not torch.manual_seed: where CUDA is not in use, it keeps a formatted traceback of every call.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _log_step(self) -> bool:
        """Reads and writes the metrics of the steps since the last time; False after a rollback."""
        metrics = self.updater.read(self.world)
        self._count_skipped(metrics.skipped)
        if metrics.nonfinite:
            self._handle_nonfinite(metrics.nonfinite)
            return False
        values = metrics.values
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

    def _handle_nonfinite(self, message: str) -> None:
        """Raises NonFinite, or rolls back as configured. Every rank sees the same numbers, so all do the same."""
        if self.settings.on_nonfinite != "rollback":
            raise NonFinite(message)
        self.mishaps += 1
        if self.mishaps > self.settings.nonfinite_limit:
            raise NonFinite(f"{message}; {self.settings.nonfinite_limit} rollbacks did not help")
        self.checkpoints.wait()
        self._restore()
        self.log.rewind(self.step)
        self._window, self.stream.waited = (time.perf_counter(), self.step), 0.0
        # The stream is not rewound: the images that led here are left out.
        self.log.event(self.step, "rollback", f"{message}: rolled back to step {self.step}, later images go on")

    def _count_skipped(self, skipped: list[str]) -> None:
        self.mishaps += len(skipped)
        for what in skipped:
            self.log.event(self.step, "skipped", f"{what}: skipped")
        if skipped and self.mishaps > self.settings.nonfinite_limit:
            raise NonFinite(
                f"{skipped[-1]}; more than trainer.nonfinite_limit={self.settings.nonfinite_limit} skipped"
            )

    def _judge(self) -> float | None:
        """Evaluates; checkpoint.best's metric if it is better than ever before."""
        self.evaluation_due = True
        value = self._evaluate(pictures=False)
        self.evaluation_due = False
        if value is None or not value < (math.inf if self.best is None else self.best):  # NaN is not better
            self.worse += 1
            return None
        self.best, self.worse = value, 0
        return value

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.worse >= self.settings.patience

    def _save(self, value: float | None = None) -> None:
        """Saves this step once. value: checkpoint.best's metric, where this step's is the best."""
        if self.saved == self.step:
            return
        self.saved = self.step
        if not self.settings.sync_batchnorm:
            average_buffers(self.algorithm, self.world)
        self.updater.unfreeze()
        metric = self.settings.checkpoint.best
        judged = {"metric": metric, "best": self.best, "worse": self.worse, "due": self.evaluation_due}
        info = {"step": self.step, "images": self.stream.images, "value": value, "evaluation": judged}
        info |= states.settings(self.updater)
        self.checkpoints.save(states.training_state(self.algorithm, self.updater), info)

    def _save_surely(self) -> bool:
        """Saves this step and waits for it, twice if need be; whether it is on disk."""
        for _ in range(2):
            self._save()
            if self.checkpoints.wait():
                return True
            self.saved = None
        return False

    def _restore(self, best: bool = False) -> int | None:
        """Continues from the newest checkpoint that verifies, or the best one; returns its images seen, or None."""
        found = self.checkpoints.latest(best)
        if found is None:
            return None
        path, info = found
        states.restore_settings(self.updater, info, self.world.device)
        states.allocate(self.algorithm, self.updater, stored_keys(path))
        self.checkpoints.load(path, states.training_state(self.algorithm, self.updater))
        self.step = self.saved = info["step"]
        judged = info["evaluation"]
        self.evaluation_due = judged["due"]
        if judged.get("metric", self.settings.checkpoint.best) == self.settings.checkpoint.best:
            self.best, self.worse = judged["best"], judged["worse"]
        return info["images"]

    def _evaluate(self, pictures: bool) -> float | None:
        """Evaluates with the averaged weights; returns the metric that checkpoint.best names, if it names one."""
        average_buffers(self.algorithm, self.world)
        images = self.run / "images" if pictures else None
        with self.updater.averaged():
            values = self.evaluator(self.algorithm, images)
        self.log.evaluation(self.step, values)
        if images is not None and self.world.main:
            steps_per_epoch = len(self.train) / self.settings.batch_size
            curves.draw(self.run / "metrics.jsonl", steps_per_epoch, images / "curves.png")
        best = self.settings.checkpoint.best
        if best is not None and best not in values:
            raise ConfigError(f"trainer.checkpoint.best={best}: the metrics are {', '.join(values)}")
        return values[best] if best else None

    def _finish(self) -> None:
        if not self._save_surely():
            raise CheckpointError(
                f"the weights of step {self.step} could not be saved in {self.run}: make room, then the same command "
                "continues from the checkpoint before"
            )
        if self.settings.patience:
            found = self._restore(best=True) is not None
            which = "the best one" if found else "the last one, since no best one verifies"
            self.log.line(f"the weights are those of step {self.step}, {which}")
        self._evaluate(pictures=True)
        self.log.beat(self.step, state="finished", eta_s=0.0)
        self.log.line(f"finished: pictures in {self.run / 'images'}, numbers in {self.run / 'metrics.jsonl'}")
