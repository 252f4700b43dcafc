"""What a run says: metrics.jsonl, TensorBoard events, status.json, and a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dtrain.config import HeldOut
from dtrain.files import append_line, drop_after, read_json, write_json
from dtrain.metrics import member, table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LARGEST = 1000  # pixels a side of a picture in TensorBoard, which keeps all of them
COLUMNS = (
    TextColumn("epoch {task.fields[epoch]}"),
    BarColumn(),
    TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} images/s  ETA"),
    TimeRemainingColumn(),
)


class Log:
    """The run's voice on rank 0; on the other ranks every call does nothing.

    prefix: of every line, where several runs speak; then there is no progress bar.
    """

    prefix = ""

    def __init__(self, run_dir: Path, max_steps: int, main: bool) -> None:
        self.run_dir, self.max_steps, self.main = run_dir, max_steps, main
        self.status: dict[str, Any] = {"state": "running", "step": 0, "max_steps": max_steps}
        self._begun, self._before = time.monotonic(), 0.0  # of this start; seconds of the starts before it
        self._heartbeat = 0.0
        self._said: set[str] = set()  # what went wrong with writing
        self._board: SummaryWriter | None = None
        self._bar: Progress | None = None

    def start(self, step: int, bar: bool = True) -> None:
        """Counts the start, opens the TensorBoard events and, on a terminal, the progress bar, after so many steps.

        bar: unless not.
        """
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._count()
        self._board = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=step + 1 if step else None)
        if bar and not self.prefix and sys.stdout.isatty():
            self._bar = Progress(*COLUMNS)
            texts: dict[str, Any] = {"epoch": 0, "loss": "-", "speed": "-"}
            self._task = self._bar.add_task("train", total=self.max_steps, completed=step, **texts)
            self._bar.start()

    def _count(self) -> None:
        """Goes on from the last heartbeat in counting the starts, and the seconds of all of them together."""
        before = read_json(self.run_dir / "status.json")
        starts, seconds = before.get("starts"), before.get("seconds")
        self.status["starts"] = 1 + (starts if isinstance(starts, int) else 0)
        self._before = seconds if isinstance(seconds, int | float) else 0.0

    def line(self, text: str) -> None:
        """A message to the person watching."""
        if not self.main:
            return
        try:
            (self._bar.console.print if self._bar else lambda t: print(t, flush=True))(self.prefix + text)
        except BrokenPipeError:  # whoever read along has gone
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def train(self, step: int, values: dict[str, float], loss: float) -> None:
        """One logged step: values go to the files, the few that matter to the screen."""
        if not self.main:
            return
        self._write("train", step, values)
        epoch, speed = values["epoch"], values["images_per_s"]
        left = (self.max_steps - step) * values["step_s"]
        self.status |= {"loss": loss, "images_per_s": speed, "eta_s": left}
        if self._bar:
            texts: dict[str, Any] = {"epoch": f"{epoch:.1f}", "loss": f"{loss:.4g}", "speed": f"{speed:,.0f}"}
            self._bar.update(self._task, completed=step, **texts)
        else:
            self.line(
                f"epoch {epoch:.2f}  step {step}/{self.max_steps}  loss {loss:.4f}  {speed:,.0f} images/s"
                f"  ETA {int(left) // 60}:{int(left) % 60:02d}"
            )

    def evaluation(self, step: int, split: HeldOut, values: dict[str, float], epoch: float) -> None:
        """One evaluation."""
        if self.main:
            self._write("evaluation", step, values, f"{split}/", split=split, epoch=epoch)
            alone = "  ".join(f"{k} {v:.5g}" for k, v in values.items() if not member(k))
            self.line(f"{split} split at step {step}: {alone}")
            for row in table(values):
                self.line(row)

    def pictures(self, step: int, files: Iterable[Path]) -> None:
        """PNG files, no larger than LARGEST, to TensorBoard as images/<name>."""
        if self._board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        for file in files:
            with self._writing(), Image.open(file) as image:
                image.thumbnail((LARGEST, LARGEST))
                content = io.BytesIO()
                image.convert("RGB").save(content, "png")
                shown = Summary.Image(
                    height=image.height, width=image.width, colorspace=3, encoded_image_string=content.getvalue()
                )
            value = Summary.Value(tag=f"images/{file.stem}", image=shown)
            self._board._get_file_writer().add_summary(Summary(value=[value]), step)

    def event(self, step: int, kind: str, message: str) -> None:
        """Something that a reader of the metrics should know: a restart, a skipped step, a failed save."""
        if self.main:
            with self._writing():
                append_line(self.run_dir / "metrics.jsonl", {"kind": kind, "step": step, "message": message})
            self.line(message)

    def rewind(self, step: int) -> None:
        """Forgets the metrics of later steps: they will be run again."""
        if self.main:
            with self._writing():
                drop_after(self.run_dir / "metrics.jsonl", step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk must not end the training: what could not be written is said once, and left out."""
        try:
            yield
        except OSError as e:
            if str(e) not in self._said:
                self._said.add(str(e))
                self.line(f"not logged, training goes on: {e}")

    def _write(self, kind: str, step: int, values: dict[str, float], prefix: str = "", **facts: float | str) -> None:
        finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}  # JSON has no NaN
        line = {"kind": kind, "step": step, "time": time.time(), **facts, **finite}
        with self._writing():
            append_line(self.run_dir / "metrics.jsonl", line)
        if self._board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for all of them: add_scalar would wake the writing thread for each.
        summary = Summary(value=[Summary.Value(tag=prefix + k, simple_value=v) for k, v in values.items()])
        with self._writing():
            self._board._get_file_writer().add_summary(summary, step)

    def beat(self, step: int, every: float = 2.0, **changes: Any) -> None:
        """Refreshes status.json, at most every `every` seconds unless something changed.

        In it, starts and seconds are of all starts of the run, and images_per_s and eta_s are the last log line's.
        """
        now = time.monotonic()
        if self.main and (changes or now - self._heartbeat >= every):
            self._heartbeat = now
            seconds = round(self._before + now - self._begun, 1)
            self.status |= {"step": step, "time": time.time(), "seconds": seconds, **changes}
            with self._writing():
                write_json(self.run_dir / "status.json", self.status)

    def close(self) -> None:
        if self._board is not None:
            with self._writing():
                self._board.close()
            if self._bar:
                self._bar.stop()
