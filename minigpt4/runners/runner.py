"""The loop: backward, step, schedule, log, checkpoint. It is handed the model and a task; accelerate the plumbing."""

import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

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
    save_model,
    save_resume,
    step_of,
)
from ..common.dist_utils import config_decides
from ..common.errors import Stopped, UserError
from ..common.logger import MetricLog, SideWork, hms, log, plot_log
from ..common.optims import create_optimizer
from ..common.paths import resolve_path
from ..common.precision import resolve_precision
from ..common.registry import LR_SCHEDULES
from ..common.schema import Config
from .averaging import WeightAverage
from .data_monitor import DataMonitor
from .going_on import changes, load_optimizer, validated_on
from .process import SAVE, STEP, StopSignals, lock_folder, make_folder, worker_fault
from .sharding import shard_llm
from .step_guard import StepGuard
from .throughput import Throughput
from .validation import Validation, log_validation

PLOT_EVERY = 120  # seconds between two drawings of loss.png


class Runner:
    """Trains what requires gradients in `model` on what `task` loads.

    Args:
        config: the whole config; its `run` section drives the loop, and it is stored in every checkpoint.
        task: builds the loader and defines a step.
        model: has `trained_tensors()` (live, by name) and `trained_state()` (detached).
    """

    def __init__(self, config: Config, task, model: nn.Module, device: torch.device):
        run = self.run = config.run
        config_decides()
        if run.deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what else may stand there can be refused by torch
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.config, self.task = config, task
        self.precision = resolve_precision(config.model, device, run)
        self.accelerator = Accelerator(
            mixed_precision=self.precision.mixed_precision,
            gradient_accumulation_steps=run.accum_grad_iters,
            cpu=device.type == "cpu",
            log_with=run.report_to or None,
        )
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.output_dir = Path(run.output_dir)
        self.total_steps = run.max_epoch * run.iters_per_epoch

        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise UserError("nothing to train: every part of the model is frozen")
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen_names(model))
        self.bare_model = model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = create_optimizer(run, model, device)
        # The model is where it belongs; an LLM that is to be sharded stays on the CPU until then.
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer, device_placement=[False, False])
        if run.parallel == "fsdp" and self.world_size > 1:
            shard_llm(model.llama_model, self.accelerator.device, self.precision.llm, self.world_size)
        if run.compile:
            model.compile_layers()
        self.schedule = LR_SCHEDULES.get(run.lr_sched)
        self.average = WeightAverage(model.trained_tensors, run.ema_decay) if run.ema_decay else None
        # The counter sees neither inside compiled layers nor quantized products.
        self.throughput = Throughput(device, count_flops=not (run.compile or config.model.low_resource))
        self.step = self._first_step = 0
        self._saved_step: int | None = 0
        self._last_checkpoint: Path | None = None
        self.signals = StopSignals()
        # Several processes must end their step together; a single one need not wait for data or for a validation.
        self._waiting = STEP if self.world_size > 1 else None
        self.side_work = SideWork()

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end, from the newest checkpoint when `run.resume` is auto."""
        make_folder(self.output_dir)
        with lock_folder(self.output_dir, self.rank), self.signals:
            self._train()

    def _train(self) -> None:
        run = self.run
        torch.manual_seed(run.seed + self.rank)
        self.monitor = DataMonitor(self.output_dir, run.max_bad_share, self.rank)
        self.guard = StepGuard(self.output_dir, run.max_bad_steps, self.rank)
        self.validation = None
        if any(dataset.valid_info for dataset in self.config.datasets.values()):
            self.validation = Validation(
                lambda: self.task.validation_batches(self.rank, self.world_size), run.early_stop
            )
        self.loader = self.task.build_loader(self.rank, self.world_size, run.seed)
        self._resume()
        if self._finished() and not self._validation_missing():
            more = "run.early_stop" if self.step < self.total_steps else "run.max_epoch"
            log.info(
                "this run has finished after step %d: %s; raise %s to go on, or write another run.output_dir, or "
                "run.resume=never", self.step, self.output_dir, more,
            )  # fmt: skip
            return
        if self._last_checkpoint:
            log.info("going on from %s (step %d)", self._last_checkpoint, self.step)
        self._try_samples()
        if run.report_to:
            with self.side_work("run.report_to"):
                self.accelerator.init_trackers("minigpt4", self._plain_config())
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
        except (RuntimeError, ConnectionError, EOFError) as error:
            if fault := worker_fault(error):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise again as the other workers end
                raise fault from None
            raise
        finally:
            if self.is_main:
                self.metrics.close()
            if run.report_to:
                with self.side_work("run.report_to"):
                    self.accelerator.end_training()
        early = self.step < self.total_steps
        log.info(
            "%s in %s. Checkpoint: %s; loss curve: %s; %s%s%s",
            f"stopped early at step {self.step}, the validation loss no longer falls," if early else "done",
            hms(time.monotonic() - started), self._last_checkpoint, self.output_dir / "loss.png",
            self.monitor.summary(),
            f"; {self.validation.summary(self.output_dir)}" if self.validation else "",
            f"; {self.guard.skipped} steps were not finite and skipped" if self.guard.skipped else "",
        )  # fmt: skip

    def _loop(self, started: float) -> None:
        run = self.run
        self.model.train()
        batches = iter(self.loader)
        bar = tqdm(
            total=self.total_steps, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.1,
            disable=not (self.is_main and sys.stderr.isatty()),
        )  # fmt: skip
        self._saved_at = self._told_at = self._plotted_at = started
        first = self.step
        self._standing = self._own_state()
        self.signals.phase = STEP
        if self._validation_missing():
            self._watch()
        while not self._finished():
            lr = self._set_lr()
            tick = time.monotonic()
            loss, taken = self._backward(batches)
            loss, norm, stop, save_now = self._step_facts(loss, self._clip())
            scaler = self.accelerator.scaler
            scale = scaler.get_scale() if scaler and not math.isfinite(norm) else None
            stepped = self.guard.admit(self.step + 1, loss, norm, taken, scale)
            if stepped:
                self.optimizer.step()
            elif scaler:
                scaler.update()  # lowers the scale; and the gradient was unscaled, as it will be in the next step
            self.optimizer.zero_grad()
            self.step += 1
            if self.average:
                self.average.update(self.step)
            seconds = time.monotonic() - tick
            self.throughput.seconds += seconds
            rate = run.batch_size_train * run.accum_grad_iters * self.world_size / seconds
            eta = (time.monotonic() - started) / (self.step - first) * (self.total_steps - self.step)
            with self.side_work("progress bar"):  # a terminal that has gone
                bar.set_postfix_str(f"loss {loss:.3f} lr {lr:.1e} {rate:.1f} samples/s")
                bar.update()
            self.signals.patience = max(self.signals.patience, 3 * seconds)
            self._standing = self._own_state()
            self._tell(loss, lr, norm if stepped else None, rate, eta, bar)
            self._save_if_due(stop, save_now)
            self._watch()
        bar.close()

    def _finished(self) -> bool:
        return self.step >= self.total_steps or (self.validation is not None and self.validation.exhausted)

    def _backward(self, batches) -> tuple[torch.Tensor, list[dict]]:
        """The gradient of `accum_grad_iters` batches; the mean of their losses, and the batches."""
        losses, taken = [], []
        for _ in range(self.run.accum_grad_iters):
            with self._between_steps(), self.signals.in_phase(self._waiting), self.throughput.waiting():
                dataset, samples = next(batches)
            self.monitor.see(dataset, samples)
            taken.append(samples)
            batch = self.task.build_batch(self.bare_model, samples)
            with self.accelerator.accumulate(self.model), self.throughput.counting(batch):
                loss = self.task.train_step(self.model, batch)
                self.accelerator.backward(loss)  # divides by accum_grad_iters
            losses.append(loss.detach().float())
        return torch.stack(losses).mean(), taken

    def _clip(self) -> torch.Tensor:
        """Clip the gradient to `run.grad_clip` and return its norm before clipping, still on the device."""
        norm = self.accelerator.clip_grad_norm_(self.trained, self.run.grad_clip or float("inf"))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _set_lr(self) -> float:
        run = self.run
        lr = self.schedule(
            self.step, total_steps=self.total_steps, init_lr=run.init_lr, min_lr=run.min_lr, warmup_lr=run.warmup_lr,
            warmup_steps=run.warmup_steps,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _step_facts(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float, int, bool]:
        """What all processes must see alike: the mean loss, the gradient's norm, a stop signal that any of them
        received, and whether rank 0's clock asks for a checkpoint. The host waits for the device here, once a step."""
        minutes = (time.monotonic() - self._saved_at) / 60
        due = bool(self.is_main and self.run.save_every_minutes and minutes >= self.run.save_every_minutes)
        of_host = torch.tensor([self.signals.received, due], dtype=torch.float32).to(loss.device, non_blocking=True)
        facts = torch.cat([torch.stack([loss, norm.to(loss)]), of_host])
        if self.world_size > 1:
            facts = self.accelerator.reduce(facts, "sum")
        loss, norm, stop, due = facts.tolist()
        return loss / self.world_size, norm / self.world_size, int(stop), bool(due)

    def _tell(self, loss: float, lr: float, norm: float | None, rate: float, eta: float, bar: tqdm) -> None:
        """`norm` None: the step was skipped."""
        if self.is_main and (self.step % self.run.log_freq == 0 or self.step == 1):
            finite = {"loss": loss, "grad_norm": round(norm, 6)} if norm is not None else {"skipped": True}
            self._write(lr=lr, samples_per_second=round(rate, 2), **finite, **self.throughput.row())
        if self.is_main and time.monotonic() - self._plotted_at > PLOT_EVERY:
            self._plotted_at = time.monotonic()
            self._plot()
        if bar.disable and time.monotonic() - self._told_at > 10:
            self._told_at = time.monotonic()
            log.info("step %d/%d  loss %.3f  lr %.1e  %.1f samples/s  %s left",
                     self.step, self.total_steps, loss, lr, rate, hms(eta))  # fmt: skip

    def _write(self, **values) -> None:
        """A row of log.jsonl for this step, and of every tracker."""
        epoch = (self.step - 1) // self.run.iters_per_epoch
        self.metrics.write(self.step, epoch=epoch, **values)
        if self.run.report_to:
            with self.side_work("run.report_to"):
                self.accelerator.log(values, step=self.step)

    def _plot(self) -> None:
        with self.side_work("loss.png"):
            plot_log(self.output_dir / "log.jsonl", self.output_dir / "loss.png")

    # -- watching -------------------------------------------------------------------------------------------------

    def _due(self, every: int | None) -> bool:
        """Every so many steps, or at the end of each epoch."""
        return self.step % (every or self.run.iters_per_epoch) == 0

    def _watch(self) -> None:
        """Validation and samples where they are due, by the averaged weights where there are any. A checkpoint of this
        step is written already, and learns of the validation that comes after it."""
        run = self.run
        validation_due = self.validation is not None and self._due(run.valid_every_steps)
        samples_due = bool(run.sample_images) and self._due(run.sample_every_steps)
        if not (validation_due or samples_due):
            return  # putting the averages in and out again copies every trained weight
        averaged = self.average.applied() if self.average else nullcontext()
        with self._between_steps(), averaged, self.signals.in_phase(self._waiting):
            if validation_due:
                self._validate()
            if samples_due:
                with self.side_work("run.sample_images"):
                    self._sample()
        if self._finished():
            self._save_step()
        if validation_due and self._saved_step == self.step:
            resume = self._resume_state()
            if self.is_main:
                with self.side_work("validation"):
                    save_resume(self._last_checkpoint, self.step, resume)

    def _validation_missing(self) -> bool:
        """Whether the run was stopped between a checkpoint and the validation that was due after it."""
        due = self.validation is not None and self.step > 0 and self._due(self.run.valid_every_steps)
        return due and self.validation.step < self.step

    def _validate(self) -> None:
        """The validation loss over all processes; the best one's weights become `checkpoint_best.pth`."""
        total, count, failed = 0.0, 0, 1
        with self.side_work("validation"):
            total, count = self.validation.totals(self.model, self._loss_of)
            failed = int(count == 0)
        totals = torch.tensor([total, count, failed], dtype=torch.float64)
        if self.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device, torch.float32), "sum").double().cpu()
        if totals[2]:
            return
        loss = (totals[0] / totals[1]).item()
        best = self.validation.note(self.step, loss)
        log_validation(self.step, loss, best, self.validation)
        if self.is_main:
            self._write(valid_loss=loss)
            if best:
                facts = {**self._facts(), "valid_loss": loss}
                save_model(self.output_dir / "checkpoint_best.pth", self.bare_model.trained_state(), facts)

    def _loss_of(self, model: nn.Module, samples: dict) -> torch.Tensor:
        return self.task.train_step(model, self.task.build_batch(self.bare_model, samples))

    def _try_samples(self) -> None:
        """A picture or a question that cannot be answered is refused before the first step."""
        if self.run.sample_images:
            try:
                self.task.sample_answers(self.bare_model, max_new_tokens=1)
            except Exception as error:
                raise UserError(f"run.sample_images, run.sample_question: {error}") from error

    def _sample(self) -> None:
        """What the model says of run.sample_images, into `samples.jsonl`."""
        answers = self.task.sample_answers(self.bare_model)
        if self.is_main:
            self.metrics.write_samples(self.step, answers)
            for row in answers:
                log.info("step %d  %s: %s", self.step, Path(row["image"]).name, row["answer"])

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save_if_due(self, stop: int, save_now: bool) -> None:
        run = self.run
        if self.step % run.iters_per_epoch == 0:
            self._save(self._epoch_file())
            if self.is_main:
                self._plot()
        elif stop or save_now or self._finished() or (run.save_every_steps and self.step % run.save_every_steps == 0):
            self._save_step()
        if stop and not self._finished():
            self._stop(self.signals.received or signal.SIGTERM)

    def _epoch_file(self) -> Path:
        """`checkpoint_N.pth` of the epoch that ends, counted from 0. Where `run.iters_per_epoch` has changed, that may
        be a checkpoint of the steps that this run went on from: it stays, and a higher N is taken."""
        number = self.step // self.run.iters_per_epoch - 1
        while step_of(file := self.output_dir / f"checkpoint_{number}.pth") <= self._first_step:
            number += 1
        return file

    def _save_step(self) -> None:
        if self._saved_step != self.step:
            self._save(self.output_dir / f"checkpoint_step_{self.step}.pth")

    def _stop(self, number: int) -> NoReturn:
        where = f"after step {self.step}; saved" if self.step else "before the first step"
        raise Stopped(f"stopped by a signal {where}. The same command goes on from there", number)

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """A signal that breaks off this block ends the run with a checkpoint of the last whole step."""
        try:
            yield
        except KeyboardInterrupt:
            if self.world_size > 1:
                raise  # a checkpoint needs all processes
            self._save_step()
            self._stop(self.signals.received)

    def _save(self, checkpoint: Path) -> None:
        with self.signals.in_phase(SAVE):
            resume = self._resume_state()
            self._saved_at, self._saved_step, self._last_checkpoint = time.monotonic(), self.step, checkpoint
            if self.is_main:
                weights = self.average.average if self.average else self.bare_model.trained_state()
                save_checkpoint(checkpoint, weights, self._facts(), resume)
                with self.side_work("old checkpoints"):
                    prune_checkpoints(self.output_dir, self.run.keep_last)
                log.info("saved %s", checkpoint)

    def _own_state(self) -> dict:
        """What a checkpoint after the step that was just made says of this process."""
        return {
            "loader": self.loader.state_dict(),
            "monitor": self.monitor.state_dict(),
            "guard": self.guard.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def _resume_state(self) -> dict:
        """What going on needs beside the weights; called in all processes."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ranks": gather_object([self._standing]),
            "validation": self.validation.state_dict() if self.validation else None,
            "num_workers": self.run.num_workers,
            "config": self._plain_config(),
            "own_weights": self.bare_model.trained_state() if self.average else None,  # `model` holds the averages
        }

    def _facts(self) -> dict:
        """What stands beside the weights in a checkpoint."""
        epoch = (self.step - 1) // self.run.iters_per_epoch
        return {"epoch": epoch, "step": self.step, "config": self._plain_config()}

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
        load_exact(self.bare_model.trained_tensors(), resume.get("own_weights") or weights, checkpoint)
        if self.average:
            self.average.load(weights)
        load_optimizer(self.optimizer, resume["optimizer"], checkpoint)
        if self.accelerator.scaler and resume["scaler"]:
            self.accelerator.scaler.load_state_dict(resume["scaler"])
        self.step = self._first_step = resume["step"]
        self._last_checkpoint = checkpoint
        # A checkpoint of another folder is not this run's: stopped before its next one, the run writes one of its own.
        self._saved_step = self.step if checkpoint.parent.resolve() == self.output_dir.resolve() else None
        before, now, ranks = resume.get("config", {}), self._plain_config(), resume["ranks"]
        if len(ranks) == self.world_size and resume["num_workers"] == self.run.num_workers:
            mine = ranks[self.rank]
            self.loader.load_state_dict(mine["loader"])
            here = self.config.datasets
            self.monitor.load_state_dict(
                {what: {n: c for n, c in counts.items() if n in here} for what, counts in mine["monitor"].items()}
            )
            self.guard.load_state_dict(mine["guard"])
            if before.get("run", {}).get("seed", self.run.seed) == self.run.seed:
                torch.set_rng_state(mine["rng"])
                if mine["cuda_rng"] is not None and torch.cuda.is_available():
                    torch.cuda.set_rng_state(mine["cuda_rng"])
        else:
            log.warning(
                "%s is of %d processes x %d workers, this run of %d x %d: the pass over each dataset starts anew, in "
                "another order, and the numbers will differ from those of the other run",
                checkpoint, len(ranks), resume["num_workers"], self.world_size, self.run.num_workers,
            )  # fmt: skip
            drawn = max(mine["loader"]["drawn"] for mine in ranks)
            self.loader = self.task.build_loader(self.rank, self.world_size, self.run.seed, drawn)
        if self.validation and resume["validation"]:
            if validated_on(before) == validated_on(now):
                self.validation.load_state_dict({"step": self.step, **resume["validation"]})
            else:
                log.warning("validation reads other samples than before: its best loss is counted from here")
        for line in changes(before, now):
            log.warning("the config has changed since: %s", line)


def frozen_names(model: nn.Module) -> list[str]:
    """What DDP must not touch: frozen parameters, which it would send from rank 0 to all others (13B of them), and the
    buffers of modules without a trained parameter, before every forward. Batch-norm statistics of a trained module are
    not among them."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for prefix, module in model.named_modules():
        if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            names += [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)]
    return names
