"""Skips steps whose loss or gradient is not finite."""

import math

from ..common.errors import UserError
from ..common.logger import log


class StepGuard:
    """One for each process. All decide alike, because they get the same numbers. `limit` bad steps in a row are
    skipped; one more ends the run."""

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped = self.in_a_row = 0

    def state_dict(self) -> dict:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def should_step(self, step: int, loss: float, grad_norm: float, loss_scale: float | None = None) -> bool:
        """Whether the optimizer may take this step. Raises UserError after more than `limit` bad steps in a row.

        Args:
            loss, grad_norm: over all processes.
            loss_scale: fp16's, when the gradient is not finite. Above 1 that is an overflow; a lower scale prevents it.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        what = f"the loss of step {step} is {loss}"
        if math.isfinite(loss):
            if loss_scale is not None and loss_scale > 1:
                log.info("step %d skipped: a gradient overflows fp16 at the loss scale %g", step, loss_scale)
                return False
            what = f"the gradient of step {step} is not finite (its norm is {grad_norm}; the loss is {loss:.3f})"
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise UserError(
                f"{what}, {self.in_a_row} steps in a row (run.max_bad_steps is {self.limit}); none of them touched the "
                "weights. Lower run.init_lr, or set run.grad_clip=1.0 or run.amp=False"
            )
        log.warning("%s: step skipped", what)
        return False
