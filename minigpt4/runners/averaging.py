"""An exponential moving average of the trained weights, which is validated and saved instead of the last step's."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class WeightAverage:
    """The average of the tensors that `tensors()` returns by name.

    After step n the average is `a_n = d a_(n-1) + (1 - d) w_n` with d = min(decay, n / (n + 9)), so the first steps
    count for little. Integer buffers are copied. torch's AveragedModel would copy the whole model with its frozen LLM.

    Args:
        decay: below 1; about 1 / (1 - decay) steps are averaged.
    """

    def __init__(self, tensors: Callable[[], dict[str, Tensor]], decay: float):
        self.tensors, self.decay = tensors, decay
        self.average = {name: tensor.detach().clone() for name, tensor in tensors().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, counted from 1, to the average."""
        decay = min(self.decay, step / (step + 9))
        for name, live in self.tensors().items():
            if live.is_floating_point():
                self.average[name].lerp_(live, 1 - decay)
            else:
                self.average[name].copy_(live)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for this block, and its own weights back afterwards."""
        live = self.tensors()
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        try:
            self._fill(live, self.average)
            yield
        finally:
            self._fill(live, own)

    def load(self, average: dict[str, Tensor]) -> None:
        """Resume from these averages."""
        self._fill(self.average, average)

    @staticmethod
    @torch.no_grad()
    def _fill(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, target in targets.items():
            target.copy_(values[name])
