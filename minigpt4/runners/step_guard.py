"""Skips steps whose loss or gradient is not finite."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.logger import SideWork, log

MOST_KEPT = 10  # batches written for inspection, for each process


class StepGuard:
    """One for each process. All decide alike, because they get the same numbers. `limit` bad steps in a row are
    skipped; one more ends the run. Batches go to `bad_batches/step_S_rank_R.pt`."""

    def __init__(self, output_dir: Path, limit: int, rank: int):
        self.folder, self.limit, self.rank = Path(output_dir) / "bad_batches", limit, rank
        self.skipped = self.in_a_row = self.kept = 0
        self.side_work = SideWork()

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("skipped", "in_a_row", "kept")}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    def should_step(
        self, step: int, loss: float, grad_norm: float, batches: list[dict], loss_scale: float | None = None
    ) -> bool:
        """Whether the optimizer may take this step. Raises UserError after more than `limit` bad steps in a row.

        Args:
            loss, grad_norm: over all processes.
            batches: of this process; written to a file when the step is bad.
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
        if self.kept < MOST_KEPT:
            self.kept += 1
            with self.side_work(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                on_cpu = [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in b.items()} for b in batches]
                torch.save(on_cpu, self.folder / f"step_{step}_rank_{self.rank}.pt")
        if self.in_a_row > self.limit:
            raise UserError(
                f"{what}, {self.in_a_row} steps in a row (run.max_bad_steps is {self.limit}); none of them touched the "
                f"weights. Lower run.init_lr, set run.grad_clip=1.0 or run.amp=False; the batches are in {self.folder}"
            )
        log.warning("%s; its batches are in %s: step skipped", what, self.folder)
        return False
