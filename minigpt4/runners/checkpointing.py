"""A run's checkpoints: when one is written, what it holds, and how a run continues from one."""

import dataclasses
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object

from ..common.checkpoint import (
    find_latest,
    load_exact,
    prune_checkpoints,
    read_resume,
    save_checkpoint,
    save_model,
    save_resume,
    step_of,
)
from ..common.logger import SideWork, log
from ..common.paths import resolve_path
from .going_on import changes, load_optimizer, validated_on
from .process import SAVE


class Checkpointing:
    """Writes and reads the checkpoints of a run.

    Args:
        runner: the run whose state they hold: weights, optimizer, place in the data, random states.
    """

    def __init__(self, runner):
        self.runner, self.run, self.side_work = runner, runner.run, SideWork()
        self.folder = Path(self.run.output_dir)
        self.first_step = 0  # where this process began
        self.last: Path | None = None
        self.saved_step: int | None = 0
        self.saved_at = time.monotonic()
        self.position: dict = {}  # of this process after the last whole step: see `note_position`

    # -- writing --------------------------------------------------------------------------------------------------

    def due_by_clock(self) -> bool:
        """Whether run.save_every_minutes have passed."""
        minutes = (time.monotonic() - self.saved_at) / 60
        return bool(self.run.save_every_minutes and minutes >= self.run.save_every_minutes)

    def note_position(self) -> None:
        """Keep what a checkpoint after the step that was just made says of this process."""
        runner = self.runner
        self.position = {
            "loader": runner.loader.state_dict(),
            "monitor": runner.monitor.state_dict(),
            "guard": runner.guard.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def save_if_due(self, asked: bool) -> None:
        """At the end of an epoch or of the run, every save_every_steps, and when it is `asked` for."""
        step, every = self.runner.step, self.run.save_every_steps
        if step % self.run.iters_per_epoch == 0:
            self._save(self._epoch_file())
            self.runner.progress.plot()
        elif asked or self.runner.finished or (every and step % every == 0):
            self.save_step()

    def _epoch_file(self) -> Path:
        """`checkpoint_N.pth` of the epoch that ends, counted from 0. Where `run.iters_per_epoch` has changed, that may
        be a checkpoint of the steps before this run continued: it stays, and a higher N is taken."""
        number = self.runner.step // self.run.iters_per_epoch - 1
        while step_of(file := self.folder / f"checkpoint_{number}.pth") <= self.first_step:
            number += 1
        return file

    def save_step(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved_step != self.runner.step:
            self._save(self.folder / f"checkpoint_step_{self.runner.step}.pth")

    def save_validation(self) -> None:
        """Tell the checkpoint of this step, if there is one, of the validation that came after it."""
        if self.saved_step == self.runner.step:
            resume = self._resume_state()
            if self.runner.is_main:
                with self.side_work("validation"):
                    save_resume(self.last, self.runner.step, resume)

    def save_best(self, loss: float) -> None:
        """The weights alone, into `checkpoint_best.pth`; `loss` is the validation's."""
        if self.runner.is_main:
            facts = {**self._facts(), "valid_loss": loss}
            save_model(self.folder / "checkpoint_best.pth", self.runner.bare_model.trained_state(), facts)

    def _save(self, checkpoint: Path) -> None:
        runner = self.runner
        with runner.signals.in_phase(SAVE):
            resume = self._resume_state()
            self.saved_at, self.saved_step, self.last = time.monotonic(), runner.step, checkpoint
            if runner.is_main:
                weights = runner.average.average if runner.average else runner.bare_model.trained_state()
                save_checkpoint(checkpoint, weights, self._facts(), resume)
                with self.side_work("old checkpoints"):
                    prune_checkpoints(self.folder, self.run.keep_last)
                log.info("saved %s", checkpoint)

    def _resume_state(self) -> dict:
        """What a continued run needs beside the weights; called in all processes."""
        runner = self.runner
        scaler, validation = runner.accelerator.scaler, runner.validation
        return {
            "optimizer": runner.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ranks": gather_object([self.position]),
            "validation": validation.state_dict() if validation else None,
            "num_workers": self.run.num_workers,
            "config": self.plain_config(),
            "own_weights": runner.bare_model.trained_state() if runner.average else None,  # `model` holds the averages
        }

    def _facts(self) -> dict:
        """What lies beside the weights in a checkpoint."""
        epoch = (self.runner.step - 1) // self.run.iters_per_epoch
        return {"epoch": epoch, "step": self.runner.step, "config": self.plain_config()}

    def plain_config(self) -> dict:
        """The config as dictionaries."""
        return {k: v for k, v in dataclasses.asdict(self.runner.config).items() if k in ("model", "datasets", "run")}

    # -- continuing -------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Continue from a checkpoint, where run.resume and run.resume_ckpt_path name one: weights, optimizer, random
        states, place in the data."""
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is None:
            return
        runner = self.runner
        weights, resume = read_resume(checkpoint)
        load_exact(runner.bare_model.trained_tensors(), resume.get("own_weights") or weights, checkpoint)
        if runner.average:
            runner.average.load(weights)
        load_optimizer(runner.optimizer, resume["optimizer"], checkpoint)
        if runner.accelerator.scaler and resume["scaler"]:
            runner.accelerator.scaler.load_state_dict(resume["scaler"])
        runner.step = self.first_step = resume["step"]
        self.last = checkpoint
        # A checkpoint of another folder is not this run's: stopped before its next one, the run writes one of its own.
        self.saved_step = runner.step if checkpoint.parent.resolve() == self.folder.resolve() else None
        before, now = resume.get("config", {}), self.plain_config()
        if (len(resume["ranks"]), resume["num_workers"]) == (runner.world_size, self.run.num_workers):
            same_seed = before.get("run", {}).get("seed", self.run.seed) == self.run.seed
            self._take_position(resume["ranks"][runner.rank], same_seed)
        else:
            self._share_data_anew(checkpoint, resume["ranks"], resume["num_workers"])
        if runner.validation and resume["validation"]:
            if validated_on(before) == validated_on(now):
                runner.validation.load_state_dict({"step": runner.step, **resume["validation"]})
            else:
                log.warning("validation reads other samples than before: its best loss is counted from here")
        for line in changes(before, now):
            log.warning("the config has changed since: %s", line)

    def _checkpoint_to_resume(self) -> Path | None:
        if self.run.resume_ckpt_path:
            return Path(resolve_path(self.run.resume_ckpt_path))
        if self.run.resume == "never":
            return None
        checkpoint, complaints = find_latest(self.folder)
        for complaint in complaints:
            log.warning("%s; trying the one before", complaint)
        return checkpoint

    def _take_position(self, position: dict, same_seed: bool) -> None:
        """This process continues exactly where the process of its rank was."""
        runner, here = self.runner, self.runner.config.datasets
        runner.loader.load_state_dict(position["loader"])
        runner.monitor.load_state_dict(
            {what: {n: c for n, c in counts.items() if n in here} for what, counts in position["monitor"].items()}
        )
        runner.guard.load_state_dict(position["guard"])
        if same_seed:
            torch.set_rng_state(position["rng"])
            if position["cuda_rng"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(position["cuda_rng"])

    def _share_data_anew(self, checkpoint: Path, positions: list[dict], num_workers: int) -> None:
        """With another number of processes or workers, the pass over each dataset starts anew."""
        runner = self.runner
        log.warning(
            "%s is of %d processes x %d workers, this run of %d x %d: the pass over each dataset starts anew, in "
            "another order, and the numbers will differ from those of the other run",
            checkpoint, len(positions), num_workers, runner.world_size, self.run.num_workers,
        )  # fmt: skip
        drawn = max(position["loader"]["drawn"] for position in positions)
        runner.loader = runner.task.build_loader(runner.rank, runner.world_size, self.run.seed, drawn)
