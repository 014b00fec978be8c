"""Catches a loss or a gradient that is not finite before it reaches the weights, and tells of loss spikes."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.logger import SideWork, log

MOST_KEPT = 10  # batches written for inspection, for each process
SETTLED = 50  # steps before a loss can count as a spike
SPIKE = 6.0  # times the usual deviation from the running mean


class StepGuard:
    """One for each process. What it decides is the same everywhere: it is asked with numbers that all processes share.

    Args:
        output_dir: the run's folder; batches go to `bad_batches/step_S_rank_R.pt`.
        limit: bad steps in a row that are skipped; one more ends the run.
    """

    def __init__(self, output_dir: Path, limit: int, rank: int):
        self.folder, self.limit, self.rank = Path(output_dir) / "bad_batches", limit, rank
        self.skipped = self.in_a_row = self.kept = 0
        self.steps, self.mean, self.deviation = 0, 0.0, 0.0
        self.side_work = SideWork()

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("skipped", "in_a_row", "kept", "steps", "mean", "deviation")}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    def should_step(
        self, step: int, loss: float, grad_norm: float, batches: list[dict], loss_scale: float | None = None
    ) -> bool:
        """Whether the optimizer may take this step.

        Args:
            step: its number, from 1.
            loss, grad_norm: over all processes.
            batches: this process's part of it; written to a file when the step is bad.
            loss_scale: fp16's, when the gradient is not finite. Above 1 that is an overflow, which a lower scale mends.
        Raises:
            UserError: more than `limit` bad steps in a row.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            self._warn_of_spike(step, loss)
            return True
        self.skipped += 1
        if math.isfinite(loss) and loss_scale is not None and loss_scale > 1:
            log.info("step %d skipped: a gradient overflows fp16 at the loss scale %g", step, loss_scale)
            return False
        self.in_a_row += 1
        what = f"the loss of step {step} is {loss}" if not math.isfinite(loss) else (
            f"the gradient of step {step} is not finite (its norm is {grad_norm}; the loss is {loss:.3f})"
        )  # fmt: skip
        where = self._keep(step, batches)
        if self.in_a_row > self.limit:
            raise UserError(
                f"{what}, {self.in_a_row} steps in a row (run.max_bad_steps is {self.limit}); none of them touched the "
                f"weights. Lower run.init_lr, set run.grad_clip=1.0 or run.amp=False; the batches are in {self.folder}"
            )
        log.warning("%s: step skipped%s", what, where)
        return False

    def _keep(self, step: int, batches: list[dict]) -> str:
        if self.kept >= MOST_KEPT:
            return ""
        self.kept += 1
        file = self.folder / f"step_{step}_rank_{self.rank}.pt"
        with self.side_work(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save([{k: v.cpu() if isinstance(v, Tensor) else v for k, v in b.items()} for b in batches], file)
            return f", its batch is in {file}"
        return ""

    def _warn_of_spike(self, step: int, loss: float) -> None:
        """Say so when a loss is far above what the last hundred steps were like."""
        away = abs(loss - self.mean)
        if self.steps >= SETTLED and loss - self.mean > SPIKE * max(self.deviation, 1e-8):
            log.warning("loss spike at step %d: %.3f, where %.3f was usual", step, loss, self.mean)
        self.steps += 1
        share = max(1 / self.steps, 0.02)
        self.mean += share * (loss - self.mean)
        self.deviation += share * (away - self.deviation) if self.steps > 1 else 0.0
