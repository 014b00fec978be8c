"""The loss on data that is not trained on, and the model's answers about run.sample_images, in the course of a run."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..common.errors import UserError
from ..common.logger import SideWork, log


class Validation:
    """Validates and asks for sample answers when they are due, with the averaged weights where there are any."""

    def __init__(self, runner):
        self.runner, self.run, self.side_work = runner, runner.run, SideWork()
        self.wanted = any(dataset.valid_info for dataset in runner.config.datasets.values())
        self.best, self.best_step = math.inf, 0
        self.since = 0  # validations since the best one
        self.step = 0  # of the last validation

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("best", "best_step", "since", "step")}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    @property
    def exhausted(self) -> bool:
        """Whether run.early_stop ends the run."""
        return self.run.early_stop is not None and self.since >= self.run.early_stop

    @property
    def missing(self) -> bool:
        """Whether the run was stopped between a checkpoint and the validation that was due after it."""
        return self.wanted and 0 < self.runner.step > self.step and self._due(self.run.valid_every_steps)

    def _due(self, every: int | None) -> bool:
        return self.runner.step % (every or self.run.iters_per_epoch) == 0

    def run_if_due(self) -> None:
        """Validate and ask for samples. A checkpoint of this step was written before, and gets the result."""
        runner = self.runner
        validation_due = self.wanted and self._due(self.run.valid_every_steps)
        samples_due = bool(self.run.sample_images) and self._due(self.run.sample_every_steps)
        if not (validation_due or samples_due):
            return  # applying the average copies every trained weight
        with runner.interruptible(runner.average.applied() if runner.average else None):
            if validation_due:
                self._validate()
            if samples_due:
                with self.side_work("run.sample_images"):
                    answers = runner.task.sample_answers(runner.bare_model)
                    runner.progress.write_samples(runner.step, answers)
        if runner.finished:
            runner.checkpoints.save_step()
        if validation_due:
            runner.checkpoints.save_validation()

    def _validate(self) -> None:
        """Take the loss over all processes, and save the best one's weights in `checkpoint_best.pth`."""
        runner, accelerator = self.runner, self.runner.accelerator
        total, count, failed = 0.0, 0, 1
        with self.side_work("validation"):
            batches = runner.task.validation_batches(runner.rank, runner.world_size)
            build, step = runner.task.build_batch, runner.task.train_step
            total, count = sum_of_losses(
                runner.model, batches, lambda model, samples: step(model, build(runner.bare_model, samples))
            )
            failed = int(count == 0)
        totals = torch.tensor([total, count, failed], dtype=torch.float64)
        if runner.world_size > 1:
            totals = accelerator.reduce(totals.to(accelerator.device, torch.float32), "sum").double().cpu()
        if totals[2]:
            return
        self.step, loss = runner.step, (totals[0] / totals[1]).item()
        runner.progress.write(self.step, valid_loss=loss)
        if loss < self.best:
            self.best, self.best_step, self.since = loss, self.step, 0
            log.info("step %d  validation loss %.4f (the best so far)", self.step, loss)
            runner.checkpoints.save_best(loss)
        else:
            self.since += 1
            log.info("step %d  validation loss %.4f (best %.4f at step %d)", self.step, loss, self.best, self.best_step)

    def try_samples(self) -> None:
        """Answer about run.sample_images with one token: a wrong picture or question ends the run at its start."""
        if self.run.sample_images:
            try:
                self.runner.task.sample_answers(self.runner.bare_model, max_new_tokens=1)
            except Exception as error:
                raise UserError(f"run.sample_images, run.sample_question: {error}") from error


@torch.no_grad()
def sum_of_losses(
    model: nn.Module, batches: Iterable[dict], loss_of: Callable[[nn.Module, dict], torch.Tensor]
) -> tuple[float, int]:
    """(sum of the losses of all samples, their number), without dropout, and with the same random prompts each time."""
    total, count = 0.0, 0
    model.eval()
    try:
        # The current GPU only: by default every GPU of the machine gets a CUDA context.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            torch.manual_seed(0)
            for batch in batches:
                size = len(batch["text_input"])
                total += loss_of(model, batch).item() * size
                count += size
    finally:
        model.train()
    return total, count
