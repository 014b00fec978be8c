"""A run's checkpoints: when one is written, what it holds, and how a run continues from one."""

import time
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.optim import Optimizer

from ..common import checkpoint as ckpt
from ..common.errors import CheckpointError
from ..common.logger import SideWork, log
from ..common.paths import resolve_path
from .process import SAVE


class Checkpointing:
    """Writes and reads the checkpoints of a run: weights, optimizer, position in the data, random states."""

    def __init__(self, runner):
        self.runner, self.run, self.side_work = runner, runner.run, SideWork()
        self.folder = Path(self.run.output_dir)
        self.first_step = 0  # where this process began
        self.last: Path | None = None
        self.saved_step: int | None = 0
        self.saved_at = time.monotonic()
        self.position: dict = {}  # of this process after the last whole step, see `note_position`
        self.config = runner.config.plain()

    def due_by_clock(self) -> bool:
        """Whether run.save_every_minutes have passed."""
        every = self.run.save_every_minutes
        return bool(every and time.monotonic() - self.saved_at >= 60 * every)

    def note_position(self) -> None:
        """Keep the state of this process after a step, for a checkpoint that is written before the next step ends."""
        runner = self.runner
        self.position = {
            "loader": runner.loader.state_dict(),
            "monitor": runner.monitor.state_dict(),
            "guard": runner.guard.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def save_if_due(self, asked: bool) -> None:
        """Save at the end of an epoch or of the run, every save_every_steps, and when it is `asked` for."""
        step, every = self.runner.step, self.run.save_every_steps
        if step % self.run.iters_per_epoch == 0:
            # Where run.iters_per_epoch has changed, checkpoint_N may be of the steps before this run continued: it
            # stays, and a higher N is taken.
            number = step // self.run.iters_per_epoch - 1
            while ckpt.step_of(file := self.folder / f"checkpoint_{number}.pth") <= self.first_step:
                number += 1
            self._save(file)
            self.runner.progress.plot()
        elif asked or self.runner.finished or (every and step % every == 0):
            self.save_step()

    def save_step(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_step != self.runner.step:
            self._save(self.folder / f"checkpoint_step_{self.runner.step}.pth")

    def save_validation(self) -> None:
        """Add a validation to the checkpoint of this step, if there is one."""
        if self.saved_step == self.runner.step:
            resume = self._resume_state()
            if self.runner.is_main:
                with self.side_work("validation"):
                    ckpt.save_resume(self.last, self.runner.step, resume)

    def save_best(self, loss: float) -> None:
        """Write the weights alone to `checkpoint_best.pth`; `loss` is the validation's."""
        if self.runner.is_main:
            facts = {**self._facts(), "valid_loss": loss}
            ckpt.save_model(self.folder / "checkpoint_best.pth", self.runner.bare_model.trained_state(), facts)

    def _save(self, checkpoint: Path) -> None:
        runner = self.runner
        with runner.signals.in_phase(SAVE):
            resume = self._resume_state()
            self.saved_at, self.saved_step, self.last = time.monotonic(), runner.step, checkpoint
            if runner.is_main:
                weights = runner.average.average if runner.average else runner.bare_model.trained_state()
                ckpt.save_checkpoint(checkpoint, weights, self._facts(), resume)
                with self.side_work("old checkpoints"):
                    ckpt.prune_checkpoints(self.folder, self.run.keep_last)
                log.info("saved %s", checkpoint)

    def _resume_state(self) -> dict:
        """What a resumed run needs beside the weights; called in all processes."""
        runner, scaler = self.runner, self.runner.accelerator.scaler
        return {
            "optimizer": runner.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ranks": gather_object([self.position]),
            "validation": runner.validation.state_dict() if runner.validation.wanted else None,
            "num_workers": self.run.num_workers,
            "config": self.config,
            "own_weights": runner.bare_model.trained_state() if runner.average else None,  # `model` holds the averages
        }

    def _facts(self) -> dict:
        """What a checkpoint holds beside the weights."""
        epoch = (self.runner.step - 1) // self.run.iters_per_epoch
        return {"epoch": epoch, "step": self.runner.step, "config": self.config}

    def resume(self) -> None:
        """Continue from the checkpoint that run.resume and run.resume_ckpt_path name, if any."""
        checkpoint, complaints = None, []
        if self.run.resume_ckpt_path:
            checkpoint = Path(resolve_path(self.run.resume_ckpt_path))
        elif self.run.resume != "never":
            checkpoint, complaints = ckpt.find_latest(self.folder)
        for complaint in complaints:
            log.warning("%s; trying the one before", complaint)
        if checkpoint is None:
            return
        runner = self.runner
        weights, resume = ckpt.read_resume(checkpoint)
        if (before := resume["config"]["run"]["optimizer"]) != self.run.optimizer:
            raise CheckpointError(
                f"run.optimizer: {self.run.optimizer}, but {checkpoint} is of a run with {before}; write another "
                "run.output_dir to begin anew, and model.ckpt to begin with its weights"
            )
        ckpt.load_exact(runner.bare_model.trained_tensors(), resume.get("own_weights") or weights, checkpoint)
        if runner.average:
            ckpt.load_exact(runner.average.average, weights, checkpoint)
        load_optimizer(runner.optimizer, resume["optimizer"], checkpoint)
        if runner.accelerator.scaler and resume["scaler"]:
            runner.accelerator.scaler.load_state_dict(resume["scaler"])
        runner.step = self.first_step = resume["step"]
        self.last = checkpoint
        # A run that resumes from another folder and is stopped before its next checkpoint writes one of its own.
        self.saved_step = runner.step if checkpoint.parent.resolve() == self.folder.resolve() else None
        self._resume_data(checkpoint, resume)
        before = resume["config"]
        if runner.validation.wanted and resume["validation"]:
            if validated_on(before) == validated_on(self.config):
                runner.validation.load_state_dict(resume["validation"])
            else:
                log.warning("validation reads other samples than before: its best loss is counted from here")
        for line in changes(before, self.config):
            log.warning("the config has changed since: %s", line)

    def _resume_data(self, checkpoint: Path, resume: dict) -> None:
        """Continue at this process's position. With another number of processes or workers, begin the data anew."""
        runner, positions = self.runner, resume["ranks"]
        there, here = (len(positions), resume["num_workers"]), (runner.world_size, self.run.num_workers)
        if there != here:
            log.warning(
                "%s is of %d processes x %d workers, this run of %d x %d: the pass over each dataset starts anew, in "
                "another order, and the numbers will differ from those of the other run", checkpoint, *there, *here,
            )  # fmt: skip
            drawn = max(position["loader"]["drawn"] for position in positions)
            runner.loader = runner.task.build_loader(runner.rank, runner.world_size, self.run.seed, drawn)
            return
        position, datasets = positions[runner.rank], self.config["datasets"]
        runner.loader.load_state_dict(position["loader"])
        runner.monitor.load_state_dict(
            {what: {n: c for n, c in counts.items() if n in datasets} for what, counts in position["monitor"].items()}
        )
        runner.guard.load_state_dict(position["guard"])
        if resume["config"]["run"]["seed"] == self.run.seed:
            torch.set_rng_state(position["rng"])
            if position["cuda_rng"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(position["cuda_rng"])


def load_optimizer(optimizer: Optimizer, state: dict, checkpoint: Path) -> None:
    """Load the moments of a checkpoint; the config decides the rest (weight decay, ...). Raises CheckpointError."""
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: its optimizer state is of another model: {error}") from None
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def validated_on(config: dict) -> tuple:
    """The part of a plain config that decides which samples validation reads."""
    datasets = {name: dataset["valid_info"] for name, dataset in config["datasets"].items() if dataset["valid_info"]}
    return datasets, config["run"]["valid_samples"]


def changes(before: dict, now: dict, prefix: str = "") -> list[str]:
    """A line `a.b: old -> new` for every key in which two nested dictionaries differ."""
    lines = []
    for key in [*before, *(k for k in now if k not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif isinstance(old, dict) or isinstance(new, dict):
            lines.append(f"{prefix}{key}: {'removed' if isinstance(old, dict) else 'added'}")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
