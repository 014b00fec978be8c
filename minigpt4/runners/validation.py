"""The loss on data that is not trained on: the best checkpoint, and when to stop."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from ..common.logger import log


class Validation:
    """Validation losses of a run, the best of them, and how long ago that was.

    Args:
        batches: a function that gives this process's batches, the same ones each time.
        patience: validations without a better loss after which the run ends; None: never.
    """

    def __init__(self, batches: Callable[[], Iterable[dict]], patience: int | None):
        self.batches, self.patience = batches, patience
        self.best, self.best_step, self.since = math.inf, 0, 0
        self.step = 0  # of the last validation

    def state_dict(self) -> dict:
        return {"best": self.best, "best_step": self.best_step, "since": self.since, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    @torch.no_grad()
    def totals(self, model: nn.Module, loss_of: Callable[[nn.Module, dict], torch.Tensor]) -> tuple[float, int]:
        """(sum of the losses of the samples, samples) over this process's batches, without dropout.

        The process's random state is left as it was; instructions are drawn alike each time.
        """
        total, count = 0.0, 0
        model.eval()
        try:
            # The current GPU only: by default every GPU of the machine gets a CUDA context.
            with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
                torch.manual_seed(0)
                for batch in self.batches():
                    size = len(batch["text_input"])
                    total += loss_of(model, batch).item() * size
                    count += size
        finally:
            model.train()
        return total, count

    def note(self, step: int, loss: float) -> bool:
        """Remember the loss of `step`. Returns whether it is the best so far."""
        self.step = step
        if loss < self.best:
            self.best, self.best_step, self.since = loss, step, 0
            return True
        self.since += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return self.patience is not None and self.since >= self.patience

    def summary(self, folder: Path) -> str:
        return f"best validation loss {self.best:.4f} at step {self.best_step}: {folder / 'checkpoint_best.pth'}"


def log_validation(step: int, loss: float, best: bool, validation: Validation) -> None:
    """One line for people."""
    rest = "the best so far" if best else f"best {validation.best:.4f} at step {validation.best_step}"
    log.info("step %d  validation loss %.4f (%s)", step, loss, rest)
