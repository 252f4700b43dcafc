"""The loop: step, log, evaluate, save, stop on signal, stage after stage; all that an algorithm need not know."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress

import torch

from dtrain import tensors
from dtrain.checkpoint import Checkpointer, CheckpointError, stored_keys
from dtrain.config import Config, ConfigError, HeldOut, of_stage
from dtrain.distributed import average_buffers, distribute, evaluating
from dtrain.faults import Interrupted, NonFinite, Paused, StopSignal, explain
from dtrain.files import STOPPED
from dtrain.init import Starts
from dtrain.judge import Evaluator, Judge, check_judged
from dtrain.length import lengths, pause_step
from dtrain.log import Log
from dtrain.meter import Meter
from dtrain.models.base import Algorithm, Site, Stage
from dtrain.stream import Stream
from dtrain.update import Updater
from dtrain.world import reseed


class Trainer:
    """Trains one algorithm in one run folder to the end of its stages, from its latest checkpoint if there is one.

    step: of the run, names checkpoints. images: of the stage, which began at step `begun`. starts: what a new run
    begins with.
    """

    def __init__(
        self, config: Config, algorithm: Algorithm, site: Site, stop: StopSignal, evaluation: Evaluator,
        starts: Starts = list,
    ) -> None:  # fmt: skip
        settings, self.starts = config.trainer, starts
        self.settings, self.algorithm, self.site = settings, algorithm, site
        self.world, self.stop, self.evaluation = site.world, stop, evaluation
        distribute(
            algorithm, self.world, strategy=settings.strategy, shard_size=settings.shard_size,
            sync_batchnorm=settings.sync_batchnorm, channels_last=settings.channels_last,
        )  # fmt: skip
        self.updater = Updater(algorithm, config.optim, settings, self.world)
        steps = lengths(settings, algorithm.stages(), len(site.train))
        self.stages = [(s, steps[s.name]) for s in algorithm.stages() if steps[s.name] and not s.trained]
        self.log = Log(site.folder, sum(length for _, length in self.stages), self.world.main)
        report = lambda said: self.log.event(self.step, "checkpoint", said)  # noqa: E731
        self.checkpoints = Checkpointer(site.folder / "checkpoints", settings.checkpoint, self.world, report)
        self.pause = pause_step(config.run.pause_at, self.log.max_steps)
        self.meter = Meter(self.world.device)
        self.mishaps = 0  # skipped steps or rollbacks
        self.saved: int | None = None
        self.code = 0  # of the exit
        self._set_stage(0, step=0, images=0)

    def _set_stage(self, number: int, step: int, images: int) -> None:
        self.number, self.begun, self.step, self.images = number, step, step, images
        best, patience = self.settings.checkpoint.best, self.settings.patience
        self.judge = Judge(of_stage(best, self.stage.name), of_stage(patience, self.stage.name))

    @property
    def stage(self) -> Stage:
        """The stage under way."""
        return self.stages[self.number][0]

    @property
    def final(self) -> bool:
        """Whether it is the last one."""
        return self.number == len(self.stages) - 1

    def rehearse(self) -> None:
        """ConfigError unless one batch can be evaluated, and gives the metrics that the stages are judged by."""
        self.algorithm.eval()
        with torch.no_grad():
            known = self.evaluation.rehearse()
        check_judged([of_stage(self.settings.checkpoint.best, stage.name) for stage, _ in self.stages], known)

    def fit(self) -> int:
        """Runs to the end, and evaluates there on both splits: 0, also when paused; STOPPED when asked to stop."""
        course = self.course()
        for stage in course:
            try:
                stage.step(self.stream, self.updater)
            except BaseException as e:
                with suppress(StopIteration):
                    course.throw(e)  # says what becomes of the run
        return self.code

    def course(self) -> Generator[Stage, None, None]:
        """All of `fit` but the steps: whoever iterates takes one, of the stage it yields; `code` is how it ended."""
        try:
            self.begin()
            yield from self._train_stage()
            while not self.final:
                self._enter(self.number + 1)
                yield from self._train_stage()
            self._finish()
        except Paused:
            self.log.beat(self.step, state="paused")
            self.log.line(f"paused at step {self.step}; without run.pause_at the same command continues")
        except Interrupted:
            where = "there" if self._save_surely() else "the last checkpoint"
            self.log.beat(self.step, state="stopped")
            self.log.line(f"stopped at step {self.step}; the same command continues from {where}")
            self.code = STOPPED
        except BaseException as e:
            error = explain(e, self.world, self.step)
            self.log.beat(self.step, state="failed", error=f"{type(error).__name__}: {error}")
            raise error from (e if error is not e else None)
        finally:
            if hasattr(self, "stream"):
                self.stream.close()
            if not self.world.broken:
                self.stop.drain()
                self.checkpoints.wait()
            self.log.close()

    def begin(self) -> None:
        """Continues from the newest checkpoint, or begins the first stage."""
        self.checkpoints.tidy()
        found = self.restore()
        self.log.start(self.step)
        self.log.rewind(self.step)
        self.log.beat(self.step, state="running")
        if self.algorithm.summary():
            self.log.line(self.algorithm.summary())
        if found:
            self.log.line(f"{self.site.folder}: continuing from step {self.step}")
            self._open()
            return
        for start in self.starts():
            start.load(self.algorithm, self.updater, self.checkpoints)
            self.log.event(0, "init", str(start))
        self._enter(0)

    def _enter(self, number: int) -> None:
        """Begins a stage on the averaged weights of the one before. Saves first: nothing goes back over its start."""
        self._set_stage(number, self.step, images=0)
        if number:
            self.updater.settle()
        if self.step or self.starts() or self.settings.on_nonfinite == "rollback":
            self._save()
        if len(self.stages) > 1:
            self.log.event(self.step, "stage", f"stage {self.stage.name}: {self.stages[number][1]} steps")
        self._open()

    def _open(self) -> None:
        self.algorithm.eval()
        with torch.no_grad():
            self.stream = Stream(self.stage, self.site, self.images, self.meter)
        self.algorithm.train()
        self.meter.restart(self.step)

    def _train_stage(self) -> Iterator[Stage]:
        """Steps to the stage's length, or until its patience is over, when its best weights are its result."""
        if self.judge.due:
            value, self.saved = self._judge(), None  # its checkpoint is without the metric
            self._save_judged(value)
        while self.step - self.begun < self.stages[self.number][1] and not self.judge.out_of_patience:
            if self.step >= self.pause:
                self._pause()
            yield from self.advance()
            if self.stop.agreed():
                if self.step != self.meter.step:
                    self._log_step()  # nothing is saved unseen
                raise Interrupted
        self.stream.close()
        self._save_or_fail()
        if self.judge.patience:
            end = self.step
            found = self.restore(best=True)
            which = "the best one" if found else "the last one, since no best one verifies"
            self.log.line(f"the weights are those of step {self.step}, {which}")
            if not self.final:
                self.step, self.saved = end, None

    def _pause(self) -> None:
        """Saves and evaluates, which change nothing of what follows. Raises Paused, but not after a rollback."""
        if self.step == self.meter.step or self._log_step():
            self._save_or_fail()
            self.evaluate("valid")
            raise Paused

    def advance(self) -> Iterator[Stage]:
        """One step, which is taken by whoever iterates, and what is due after it."""
        settings, step, (stage, length) = self.settings, self.step + 1, self.stages[self.number]
        last = step - self.begun == length
        save = last or step % settings.checkpoint.every == 0
        evaluation = settings.evaluates(step - self.begun, len(self.site.train), stage.batches_per_step)
        # The end of the run has an evaluation of its own.
        evaluation &= not (last and self.final) or self.judge.metric is not None
        log = save or evaluation or step % settings.log_every == 0
        reseed(self.site.seed, self.step, self.world)
        before, batch = self.stream.images, settings.batch_size * stage.batches_per_step
        self.updater.begin(self.step, before, length * batch, measure=log)
        yield stage
        self.stream.taken(before)
        self.step, self.images = step, self.stream.images
        if log and not self._log_step():
            return  # rolled back
        with self.meter.paused():
            value = self._judge() if evaluation else None
            if save or value is not None or self.judge.out_of_patience:
                self._save_judged(value)
        self.log.beat(self.step)

    def _log_step(self) -> bool:
        """Reads and writes the metrics of the steps since the last time; False after a rollback."""
        metrics = self.updater.read(self.world)
        self._count_skipped(metrics.skipped)
        if metrics.nonfinite:
            self._handle_nonfinite(metrics.nonfinite)
            return False
        values = metrics.values | {"images": self.images, "epoch": self.images / len(self.site.train)}
        values |= self.meter.read(self.step, self.settings.batch_size * self.stage.batches_per_step)
        loss = sum(v for k, v in values.items() if k.startswith("loss/") and k.count("/") == 1)
        self.log.train(self.step, values, loss)
        return True

    def _handle_nonfinite(self, message: str) -> None:
        """Raises NonFinite, or rolls back as configured. Every rank sees the same numbers, so all do the same."""
        if self.settings.on_nonfinite != "rollback":
            raise NonFinite(message)
        self.mishaps += 1
        if self.mishaps > self.settings.nonfinite_limit:
            raise NonFinite(f"{message}; {self.settings.nonfinite_limit} rollbacks did not help")
        self.checkpoints.wait()
        number, _ = self.number, self.restore()
        if self.number != number:
            raise NonFinite(f"{message}; no checkpoint of its stage verifies to roll back to")
        self.log.rewind(self.step)
        self.meter.restart(self.step)
        # The stream is not rewound: the images that led here are left out.
        self.images = self.stream.images
        self.log.event(self.step, "rollback", f"{message}: rolled back to step {self.step}, later images go on")

    def _count_skipped(self, skipped: list[str]) -> None:
        self.mishaps += len(skipped)
        for what in skipped:
            self.log.event(self.step, "skipped", f"{what}: skipped")
        limit = self.settings.nonfinite_limit
        if skipped and self.mishaps > limit:
            raise NonFinite(f"{skipped[-1]}; more than trainer.nonfinite_limit={limit} skipped")

    def _judge(self) -> float | None:
        """Evaluates; the judge's metric if it is better than ever before in this stage."""
        self.judge.due = True
        values = self.evaluate("valid")
        self.judge.due = False
        return self.judge.judge(values)

    def _save(self, value: float | None = None) -> None:
        """Saves this step once. value: the judge's metric, where this step's is the best."""
        if self.saved == self.step:
            return
        self.saved = self.step
        if not self.settings.sync_batchnorm:
            average_buffers(self.algorithm, self.world)
        self.updater.unfreeze()
        info = {"step": self.step, "stage": self.stage.name, "begun": self.begun, "images": self.images}
        info |= {"value": value, "judged": self.judge.state(), **tensors.settings(self.updater)}
        self.checkpoints.save(tensors.training_state(self.algorithm, self.updater), info)

    def _save_judged(self, value: float | None) -> None:
        """value: see _save. The best weights of a stage with patience are its result: they are saved for certain."""
        (self._save_or_fail if value is not None and self.judge.patience else self._save)(value)

    def _save_or_fail(self, value: float | None = None) -> None:
        """CheckpointError if this step's weights, which the result depends on, are not on disk."""
        if not self._save_surely(value):
            raise CheckpointError(
                f"the weights of step {self.step} could not be saved in {self.site.folder}: make room, then the same "
                "command continues from the checkpoint before"
            )

    def _save_surely(self, value: float | None = None) -> bool:
        """Saves this step and waits for it, twice if need be; whether it is on disk."""
        for _ in range(2):
            self._save(value)
            if self.checkpoints.wait():
                return True
            self.saved = None
        return False

    def restore(self, best: bool = False) -> bool:
        """Continues from the newest checkpoint that verifies, or from the best of its stage; False without one."""
        found = self.checkpoints.latest(best)
        if found is None:
            return False
        path, info = found
        self.updater.unfreeze()
        tensors.restore_settings(self.updater, info, self.world.device)
        tensors.allocate(self.algorithm, self.updater, stored_keys(path))
        self.checkpoints.load(path, tensors.training_state(self.algorithm, self.updater))
        names = [stage.name for stage, _ in self.stages]
        if info["stage"] not in names:
            raise ConfigError(f"{path} is of stage {info['stage']}, which trainer.max_steps gives no steps")
        self._set_stage(names.index(info["stage"]), info["begun"], info["images"])
        self.step = self.saved = info["step"]
        self.judge.restore(info["judged"])
        return True

    def evaluate(self, split: HeldOut, pictures: bool = False) -> dict[str, float]:
        """The numbers of the weights at hand, and perhaps pictures."""
        with evaluating(self.algorithm, self.updater, self.world):
            values = self.evaluation.measure(split)
            self.log.evaluation(self.step, split, values, self.images / len(self.site.train))
            if pictures:
                self.log.pictures(self.step, self.evaluation.draw(split))
        return values

    def _finish(self) -> None:
        self.evaluate("valid")
        self.evaluate("test", pictures=True)  # what nothing was selected by
        self.checkpoints.tidy()  # what a refused removal has left
        self.log.beat(self.step, state="finished", eta_s=0.0)
        self.log.line(f"finished: pictures and numbers in {self.site.folder}")
