"""What a run writes about its steps: log.jsonl and TensorBoard, trackers, loss.png, lines on the console."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from ..common.gpus import card_called
from ..common.logger import MetricLog, SideWork, hms, log, plot_log
from ..common.schema import RunConfig

PLOT_EVERY = 120  # seconds between two drawings of loss.png
SAY_EVERY = 10  # seconds between two lines on the console


class Progress:
    """One for each process; only the main one writes. A failure in it is a warning. `steps` are those of the run."""

    def __init__(self, run: RunConfig, accelerator: Accelerator, folder: Path, steps: int):
        self.run, self.accelerator, self.folder, self.steps = run, accelerator, folder, steps
        self.is_main, self.side_work = accelerator.is_main_process, SideWork()
        self.metrics: MetricLog | None = None

    @contextmanager
    def opened(self, step: int, config: dict) -> Iterator[None]:
        """Open the files and trackers for this block, which begins after `step`. `config` goes to the trackers."""
        if self.run.report_to:
            with self.side_work("run.report_to"):
                self.accelerator.init_trackers("minigpt4", config)
        self.metrics = MetricLog(self.folder, step) if self.is_main else None
        self.first_step = step
        self.started = self.said_at = self.plotted_at = time.monotonic()
        try:
            yield
        finally:
            if self.metrics:
                self.metrics.close()
            if self.run.report_to:
                with self.side_work("run.report_to"):
                    self.accelerator.end_training()

    @property
    def seconds(self) -> float:
        """Since the block began."""
        return time.monotonic() - self.started

    def step_done(self, step: int, loss: float, lr: float, rate: float) -> None:
        """Log a line and draw loss.png, now and then. `rate` is in samples a second."""
        if time.monotonic() - self.plotted_at > PLOT_EVERY:
            self.plot()
        if time.monotonic() - self.said_at > SAY_EVERY:
            self.said_at = time.monotonic()
            left = self.seconds / (step - self.first_step) * (self.steps - step)
            log.info("step %d/%d  loss %.3f  lr %.1e  %.1f samples/s  %s left",
                     step, self.steps, loss, lr, rate, hms(left))  # fmt: skip

    def write(self, step: int, **values) -> None:
        """Write a row of log.jsonl and of every tracker."""
        if self.metrics:
            self.metrics.write(step, epoch=(step - 1) // self.run.iters_per_epoch, **values)
            if self.run.report_to:
                with self.side_work("run.report_to"):
                    self.accelerator.log(values, step=step)

    def write_samples(self, step: int, answers: list[dict]) -> None:
        """Write and log the answers about run.sample_images."""
        if self.metrics:
            self.metrics.write_samples(step, answers)
            for row in answers:
                log.info("step %d  %s: %s", step, Path(row["image"]).name, row["answer"])

    def plot(self) -> None:
        """Draw loss.png."""
        self.plotted_at = time.monotonic()
        if self.is_main:
            with self.side_work("loss.png"):
                plot_log(self.folder / "log.jsonl", self.folder / "loss.png")


class Throughput:
    """How fast this process is between two rows of log.jsonl. FLOPs are counted in the first step, on a known GPU."""

    def __init__(self, device: torch.device, count_flops: bool = True):
        self.device = device
        on_gpu = device.type == "cuda" and count_flops
        card = card_called(torch.cuda.get_device_name(device)) if on_gpu else None
        self.peak = card.tflops16 * 1e12 if card else None
        self.flops_per_position = 0.0
        self.seconds = self.waited = 0.0
        self.tokens = self.positions = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of this block as waiting for data."""
        tick = time.monotonic()
        yield
        self.waited += time.monotonic() - tick

    @contextmanager
    def counting(self, batch: dict) -> Iterator[None]:
        """Count a batch, whose forward and backward are in this block."""
        positions = batch["input_ids"].numel() if "input_ids" in batch else 0
        self.positions += positions
        self.tokens += batch.get("tokens", 0)
        counts = self.peak and positions and not self.flops_per_position
        with FlopCounterMode(display=False) if counts else nullcontext() as counter:
            yield
        if counts:
            self.flops_per_position = counter.get_total_flops() / positions

    def row(self) -> dict[str, float]:
        """The values for log.jsonl since the last call."""
        seconds = max(self.seconds, 1e-9)
        values = {"data_wait_share": round(self.waited / seconds, 4)}
        if self.positions:
            values["tokens_per_second"] = round(self.tokens / seconds, 1)
            values["padding_share"] = round(1 - self.tokens / self.positions, 4)
        if self.device.type == "cuda":
            values["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        if self.peak and self.flops_per_position:
            values["mfu"] = round(self.flops_per_position * self.positions / seconds / self.peak, 4)
        self.seconds = self.waited = 0.0
        self.tokens = self.positions = 0
        return values
