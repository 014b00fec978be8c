"""An exponential moving average of the trained weights; it is validated and saved instead of those of the last step."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class WeightAverage:
    """The average of the tensors that `tensors()` returns by name: after step n, `a_n = d a_(n-1) + (1 - d) w_n` with
    d = min(decay, n / (n + 9)), so the first steps count for little. Integer buffers are copied. torch's AveragedModel
    would copy the whole model with its frozen LLM."""

    def __init__(self, tensors: Callable[[], dict[str, Tensor]], decay: float):
        self.tensors, self.decay = tensors, decay
        self.average = {name: tensor.detach().clone() for name, tensor in tensors().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        for name, live in self.tensors().items():
            if live.is_floating_point():
                self.average[name].lerp_(live, 1 - decay)
            else:
                self.average[name].copy_(live)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self.tensors().items():
            own = live.clone()
            live.copy_(self.average[name])
            self.average[name].copy_(own)
