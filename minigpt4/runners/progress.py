"""What a run says of its steps: log.jsonl and TensorBoard, trackers, loss.png, a progress bar, lines on the console."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from tqdm import tqdm

from ..common.logger import MetricLog, SideWork, hms, log, plot_log
from ..common.schema import RunConfig

PLOT_EVERY = 120  # seconds between two drawings of loss.png
SAY_EVERY = 10  # seconds between two lines on the console, where there is no progress bar


class Progress:
    """One for each process; only the main one writes. None of it can end a run: a failure is a warning.

    Args:
        steps: how many the run has in all.
    """

    def __init__(self, run: RunConfig, accelerator: Accelerator, folder, steps: int):
        self.run, self.accelerator, self.folder, self.steps = run, accelerator, folder, steps
        self.is_main, self.side_work = accelerator.is_main_process, SideWork()
        self.metrics: MetricLog | None = None
        self.bar: tqdm | None = None
        self.first_step = 0
        self.started = self.said_at = self.plotted_at = time.monotonic()

    @contextmanager
    def opened(self, step: int, config: dict) -> Iterator[None]:
        """The files and trackers are open within this context, which begins after `step`.

        Args:
            config: what trackers are told of the run.
        """
        if self.run.report_to:
            with self.side_work("run.report_to"):
                self.accelerator.init_trackers("minigpt4", config)
        self.metrics = MetricLog(self.folder, step) if self.is_main else None
        self.bar = tqdm(
            total=self.steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1,
            disable=not (self.is_main and sys.stderr.isatty()),
        )  # fmt: skip
        self.first_step = step
        self.started = self.said_at = self.plotted_at = time.monotonic()
        try:
            yield
            self.bar.close()
        finally:
            if self.metrics:
                self.metrics.close()
            if self.run.report_to:
                with self.side_work("run.report_to"):
                    self.accelerator.end_training()

    @property
    def seconds(self) -> float:
        """Since the context began."""
        return time.monotonic() - self.started

    def step_done(self, step: int, loss: float, lr: float, rate: float) -> None:
        """Move the bar, or say a line, and draw loss.png now and then.

        Args:
            rate: samples a second.
        """
        with self.side_work("progress bar"):  # a terminal that has gone
            self.bar.set_postfix_str(f"loss {loss:.3f} lr {lr:.1e} {rate:.1f} samples/s")
            self.bar.update()
        if self.is_main and time.monotonic() - self.plotted_at > PLOT_EVERY:
            self.plot()
        if self.bar.disable and time.monotonic() - self.said_at > SAY_EVERY:
            self.said_at = time.monotonic()
            left = self.seconds / (step - self.first_step) * (self.steps - step)
            log.info("step %d/%d  loss %.3f  lr %.1e  %.1f samples/s  %s left",
                     step, self.steps, loss, lr, rate, hms(left))  # fmt: skip

    def write(self, step: int, **values) -> None:
        """A row of log.jsonl, and of every tracker."""
        if self.metrics:
            self.metrics.write(step, epoch=(step - 1) // self.run.iters_per_epoch, **values)
            if self.run.report_to:
                with self.side_work("run.report_to"):
                    self.accelerator.log(values, step=step)

    def plot(self) -> None:
        """Draw loss.png."""
        self.plotted_at = time.monotonic()
        if self.is_main:
            with self.side_work("loss.png"):
                plot_log(self.folder / "log.jsonl", self.folder / "loss.png")
