"""Validation and sample answers as training goes on."""

from pathlib import Path

import torch
from torch import nn

from ..common.errors import UserError
from ..common.logger import SideWork, log
from .validation import Validation, log_validation


class Watching:
    """Validates and asks for samples when they are due, by the averaged weights where there are any.

    Args:
        runner: the run; its task gives batches and answers, its checkpoints keep what came out.
    """

    def __init__(self, runner):
        self.runner, self.run, self.side_work = runner, runner.run, SideWork()
        self.validation: Validation | None = None
        if any(dataset.valid_info for dataset in runner.config.datasets.values()):
            self.validation = Validation(
                lambda: runner.task.validation_batches(runner.rank, runner.world_size), self.run.early_stop
            )

    def watch(self) -> None:
        """Do what is due. A checkpoint of this step is written already, and learns of the validation that comes after
        it."""
        runner = self.runner
        validation_due = self.validation is not None and self._due(self.run.valid_every_steps)
        samples_due = bool(self.run.sample_images) and self._due(self.run.sample_every_steps)
        if not (validation_due or samples_due):
            return  # putting the averages in and out again copies every trained weight
        with runner.interruptible(runner.average.applied() if runner.average else None):
            if validation_due:
                self._validate()
            if samples_due:
                with self.side_work("run.sample_images"):
                    self._sample()
        if runner.finished:
            runner.checkpoints.save_step()
        if validation_due:
            runner.checkpoints.save_validation()

    def _due(self, every: int | None) -> bool:
        """Every so many steps, or at the end of each epoch."""
        return self.runner.step % (every or self.run.iters_per_epoch) == 0

    def validation_missing(self) -> bool:
        """Whether the run was stopped between a checkpoint and the validation that was due after it."""
        due = self.validation is not None and self.runner.step > 0 and self._due(self.run.valid_every_steps)
        return due and self.validation.step < self.runner.step

    def _validate(self) -> None:
        """The validation loss over all processes; the best one's weights become `checkpoint_best.pth`."""
        runner, accelerator = self.runner, self.runner.accelerator
        total, count, failed = 0.0, 0, 1
        with self.side_work("validation"):
            total, count = self.validation.totals(runner.model, self._loss_of)
            failed = int(count == 0)
        totals = torch.tensor([total, count, failed], dtype=torch.float64)
        if runner.world_size > 1:
            totals = accelerator.reduce(totals.to(accelerator.device, torch.float32), "sum").double().cpu()
        if totals[2]:
            return
        loss = (totals[0] / totals[1]).item()
        best = self.validation.note(runner.step, loss)
        log_validation(runner.step, loss, best, self.validation)
        runner.progress.write(runner.step, valid_loss=loss)
        if best:
            runner.checkpoints.save_best(loss)

    def _loss_of(self, model: nn.Module, samples: dict) -> torch.Tensor:
        return self.runner.task.train_step(model, self.runner.task.build_batch(self.runner.bare_model, samples))

    def try_samples(self) -> None:
        """A picture or a question that cannot be answered is refused before the first step."""
        if self.run.sample_images:
            try:
                self.runner.task.sample_answers(self.runner.bare_model, max_new_tokens=1)
            except Exception as error:
                raise UserError(f"run.sample_images, run.sample_question: {error}") from error

    def _sample(self) -> None:
        """What the model says of run.sample_images, into `samples.jsonl`."""
        answers = self.runner.task.sample_answers(self.runner.bare_model)
        if metrics := self.runner.progress.metrics:
            metrics.write_samples(self.runner.step, answers)
            for row in answers:
                log.info("step %d  %s: %s", self.runner.step, Path(row["image"]).name, row["answer"])
