"""How fast a run is: waiting for data, tokens a second, padding, GPU memory, share of the peak FLOP/s."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..common.gpus import card_called


class Throughput:
    """Collects counts of this process between two rows of log.jsonl.

    Args:
        count_flops: count the FLOPs of the first step, recomputed layers among them, where the GPU's peak is known.
    """

    def __init__(self, device: torch.device, count_flops: bool = True):
        self.device = device
        known = device.type == "cuda" and count_flops
        card = card_called(torch.cuda.get_device_name(device)) if known else None
        self.peak = card.tflops16 * 1e12 if card else None
        self.flops_per_position = 0.0
        self._start()

    def _start(self) -> None:
        self.seconds = self.waited = 0.0
        self.tokens = self.positions = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is spent waiting for the loader."""
        tick = time.monotonic()
        yield
        self.waited += time.monotonic() - tick

    @contextmanager
    def counting(self, batch: dict) -> Iterator[None]:
        """A batch's forward and backward are inside."""
        positions = batch["input_ids"].numel() if "input_ids" in batch else 0
        self.positions += positions
        self.tokens += batch.get("tokens", 0)
        counts = self.peak and positions and not self.flops_per_position
        with FlopCounterMode(display=False) if counts else nullcontext() as counter:
            yield
        if counts:
            self.flops_per_position = counter.get_total_flops() / positions

    def row(self) -> dict[str, float]:
        """The values for log.jsonl since the last call: of this process, over the steps alone."""
        seconds, values = max(self.seconds, 1e-9), {}
        values["data_wait_share"] = round(self.waited / seconds, 4)
        if self.positions:
            values["tokens_per_second"] = round(self.tokens / seconds, 1)
            values["padding_share"] = round(1 - self.tokens / self.positions, 4)
        if self.device.type == "cuda":
            values["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        if self.peak and self.flops_per_position:
            values["mfu"] = round(self.flops_per_position * self.positions / seconds / self.peak, 4)
        self._start()
        return values
