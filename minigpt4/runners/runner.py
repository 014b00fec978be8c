"""The loop: backward, step, schedule, log, checkpoint. It is handed the model and a task; accelerate the plumbing."""

import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..common.checkpoint import (
    find_latest,
    load_exact,
    prune_checkpoints,
    read_resume,
    save_checkpoint,
)
from ..common.errors import CheckpointError, UserError
from ..common.logger import MetricLog, log, plot_log
from ..common.optims import parameter_groups
from ..common.paths import resolve_path
from ..common.registry import LR_SCHEDULES
from ..common.schema import Config
from .data_monitor import DataMonitor
from .process import StopSignals, lock_folder


def mixed_precision(config: Config, device: torch.device) -> str:
    """What accelerate calls `mixed_precision`: no, bf16 or fp16 (the original's fp16 only where bf16 is missing)."""
    run = config.run
    if not run.amp:
        return "no"
    if run.amp_dtype != "auto":
        return run.amp_dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "no"


class Runner:
    """Trains what requires gradients in `model` on what `task` loads.

    Args:
        config: the whole config; its `run` section drives the loop, and it is stored in every checkpoint.
        task: builds the loader and defines a step.
        model: has `trained_tensors()` (live, by name) and `trained_state()` (detached).
    """

    def __init__(self, config: Config, task, model: nn.Module, device: torch.device):
        run = self.run = config.run
        self.config, self.task = config, task
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision(config, device),
            gradient_accumulation_steps=run.accum_grad_iters,
            cpu=device.type == "cpu",
        )
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.output_dir = Path(run.output_dir)
        self.total_steps = run.max_epoch * run.iters_per_epoch

        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise UserError("nothing to train: every part of the model is frozen")
        # DDP would send 13B frozen weights from rank 0 to all others, and their buffers before every forward.
        frozen = [n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n not in set(trained)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        self.bare_model = model
        optimizer = torch.optim.AdamW(parameter_groups(model, run.weight_decay), lr=run.init_lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = LR_SCHEDULES.get(run.lr_sched)
        self.step = 0
        self.signals = StopSignals()

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end, from the newest checkpoint when `run.resume` is auto."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.output_dir, self.rank), self.signals:
            self._train()

    def _train(self) -> None:
        run = self.run
        torch.manual_seed(run.seed + self.rank)
        self.monitor = DataMonitor(self.output_dir, run.max_bad_share, self.rank)
        self.loader = self.task.build_loader(self.rank, self.world_size, run.seed)
        self._resume()
        if self.step >= self.total_steps:
            log.info(
                "this run has finished: %s; write another run.output_dir, or run.resume=never",
                self.output_dir,
            )
            return
        self.metrics = MetricLog(self.output_dir, self.step) if self.is_main else None
        count = sum(p.numel() for p in self.bare_model.parameters() if p.requires_grad)
        log.info(
            "training %s parameters on %s x %d, %s, steps %d to %d, into %s", f"{count:,}",
            self.accelerator.device.type, self.world_size, self.accelerator.mixed_precision.replace("no", "fp32"),
            self.step, self.total_steps, self.output_dir,
        )  # fmt: skip
        started = time.monotonic()
        try:
            self._loop(started)
        finally:
            if self.is_main:
                self.metrics.close()
        log.info(
            "done in %s. Checkpoint: %s; loss curve: %s; %s", _hms(time.monotonic() - started),
            self._epoch_checkpoint(), self.output_dir / "loss.png", self.monitor.summary(),
        )  # fmt: skip

    def _loop(self, started: float) -> None:
        run = self.run
        self.model.train()
        batches = iter(self.loader)
        bar = tqdm(
            total=self.total_steps, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.1,
            disable=not (self.is_main and sys.stderr.isatty()),
        )  # fmt: skip
        self._saved_at = self._told_at = started
        first = self.step
        while self.step < self.total_steps:
            lr = self._set_lr()
            tick = time.monotonic()
            loss = self._optimizer_step(batches)
            self.step += 1
            loss, stop, save_now = self._agree(loss)
            seconds = time.monotonic() - tick
            rate = run.batch_size_train * run.accum_grad_iters * self.world_size / seconds
            eta = (time.monotonic() - started) / (self.step - first) * (self.total_steps - self.step)
            bar.set_postfix_str(f"loss {loss:.3f} lr {lr:.1e} {rate:.1f} samples/s")
            bar.update()
            self._tell(loss, lr, rate, eta, bar)
            self._save_if_due(stop, save_now)
        bar.close()

    def _optimizer_step(self, batches) -> torch.Tensor:
        """One optimizer step over `accum_grad_iters` batches; the mean of their losses."""
        losses = []
        for _ in range(self.run.accum_grad_iters):
            dataset, batch = next(batches)
            self.monitor.see(dataset, batch)
            with self.accelerator.accumulate(self.model):
                loss = self.task.train_step(self.model, batch)
                self.accelerator.backward(loss)  # divides by accum_grad_iters
                if self.run.grad_clip and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.run.grad_clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach().float())
        return torch.stack(losses).mean()

    def _set_lr(self) -> float:
        run = self.run
        lr = self.schedule(
            self.step, total_steps=self.total_steps, init_lr=run.init_lr, min_lr=run.min_lr, warmup_lr=run.warmup_lr,
            warmup_steps=run.warmup_steps,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _agree(self, loss: torch.Tensor) -> tuple[float, int, bool]:
        """What all processes must see alike: the mean loss, a stop signal any of them got, rank 0's clock."""
        minutes = (time.monotonic() - self._saved_at) / 60
        due = float(bool(self.is_main and self.run.save_every_minutes and minutes >= self.run.save_every_minutes))
        facts = torch.tensor([loss.item(), self.signals.received, due], dtype=torch.float64)
        if self.world_size > 1:
            on_device = facts.to(self.accelerator.device, torch.float32)
            facts = self.accelerator.reduce(on_device, "sum").double().cpu()
            facts[0] /= self.world_size
        if not math.isfinite(facts[0]):
            raise UserError(
                f"the loss of step {self.step} is {facts[0].item()}; the last checkpoint in {self.output_dir} is from "
                "before it. Lower run.init_lr, or set run.amp=False"
            )
        return facts[0].item(), int(facts[1]), bool(facts[2])

    def _tell(self, loss: float, lr: float, rate: float, eta: float, bar: tqdm) -> None:
        if self.is_main and (self.step % self.run.log_freq == 0 or self.step == 1):
            epoch = (self.step - 1) // self.run.iters_per_epoch
            self.metrics.write(self.step, epoch=epoch, loss=loss, lr=lr, samples_per_second=round(rate, 2))
        if bar.disable and time.monotonic() - self._told_at > 10:
            self._told_at = time.monotonic()
            log.info(
                "step %d/%d  loss %.3f  lr %.1e  %.1f samples/s  %s left",
                self.step,
                self.total_steps,
                loss,
                lr,
                rate,
                _hms(eta),
            )

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _epoch_checkpoint(self) -> Path:
        return self.output_dir / f"checkpoint_{self.step // self.run.iters_per_epoch - 1}.pth"

    def _save_if_due(self, stop: int, save_now: bool) -> None:
        run = self.run
        if self.step % run.iters_per_epoch == 0:
            self._save(self._epoch_checkpoint())
            if self.is_main:
                plot_log(self.output_dir / "log.jsonl", self.output_dir / "loss.png")
        elif stop or save_now or (run.save_every_steps and self.step % run.save_every_steps == 0):
            self._save(self.output_dir / f"checkpoint_step_{self.step}.pth")
        if stop and self.step < self.total_steps:
            raise UserError(f"stopped by a signal after step {self.step}; saved. The same command goes on from there")

    def _save(self, checkpoint: Path) -> None:
        mine = {
            "loader": self.loader.state_dict(),
            "monitor": self.monitor.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        everyone = gather_object([mine])
        self._saved_at = time.monotonic()
        if not self.is_main:
            return
        scaler = self.accelerator.scaler
        resume = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ranks": everyone,
            "num_workers": self.run.num_workers,
            "config": self._plain_config(),
        }
        facts = {
            "epoch": (self.step - 1) // self.run.iters_per_epoch,
            "step": self.step,
            "config": self._plain_config(),
        }
        save_checkpoint(checkpoint, self.bare_model.trained_state(), facts, resume)
        prune_checkpoints(self.output_dir, self.run.keep_last)
        log.info("saved %s", checkpoint)

    def _plain_config(self) -> dict:
        return {k: v for k, v in dataclasses.asdict(self.config).items() if k in ("model", "datasets", "run")}

    def _resume(self) -> None:
        """Take up where a checkpoint stands: weights, optimizer, RNG, place in the data."""
        if self.run.resume_ckpt_path:
            checkpoint = Path(resolve_path(self.run.resume_ckpt_path))
        elif self.run.resume == "never":
            return
        else:
            checkpoint, complaints = find_latest(self.output_dir)
            for complaint in complaints:
                log.warning("%s; trying the one before", complaint)
            if checkpoint is None:
                return
        weights, resume = read_resume(checkpoint)
        load_exact(self.bare_model.trained_tensors(), weights, checkpoint)
        try:
            self.optimizer.load_state_dict(resume["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{checkpoint}: its optimizer state is of another model: {error}") from None
        if self.accelerator.scaler and resume["scaler"]:
            self.accelerator.scaler.load_state_dict(resume["scaler"])
        self.step = resume["step"]
        ranks = resume["ranks"]
        if len(ranks) == self.world_size and resume["num_workers"] == self.run.num_workers:
            mine = ranks[self.rank]
            self.loader.load_state_dict(mine["loader"])
            self.monitor.load_state_dict(mine["monitor"])
            torch.set_rng_state(mine["rng"])
            if mine["cuda_rng"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(mine["cuda_rng"])
        else:
            log.warning(
                "%s is of %d processes x %d workers, this run of %d x %d: going on with freshly drawn data",
                checkpoint, len(ranks), resume["num_workers"], self.world_size, self.run.num_workers,
            )  # fmt: skip
            self.loader = self.task.build_loader(self.rank, self.world_size, self.run.seed + self.step)
        log.info("going on from %s (step %d)", checkpoint, self.step)
        for line in changes(resume.get("config", {}), self._plain_config()):
            log.warning("the config has changed since: %s", line)


def changes(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`a.b: old -> new` for every key of two nested dictionaries that differs."""
    lines = []
    for key in [*before, *(k for k in now if k not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines


def _hms(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
