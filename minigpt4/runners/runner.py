"""The training loop: backward, step, schedule, log, checkpoint."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..common.dist_utils import config_decides
from ..common.errors import Stopped, UserError
from ..common.logger import hms, log
from ..common.optims import create_optimizer
from ..common.packages import has_cpp_compiler
from ..common.precision import resolve_precision
from ..common.registry import LR_SCHEDULES
from ..common.schema import Config
from .averaging import WeightAverage
from .checkpointing import Checkpointing
from .guards import DataMonitor, StepGuard
from .process import STEP, StopSignals, lock_folder, worker_faults_explained
from .progress import Progress, Throughput
from .sharding import shard_llm
from .validation import Validation


class Runner:
    """Trains a model on a task, which builds the loader and defines a step. Accelerate handles devices, precision and
    DDP. The model has `trained_tensors()` (live, by name) and `trained_state()` (detached)."""

    def __init__(self, config: Config, task, model: nn.Module, device: torch.device):
        run = self.run = config.run
        config_decides()
        if run.deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch refuses some other values
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.config, self.task = config, task
        self.precision = resolve_precision(config.model, device, run)
        self.accelerator = Accelerator(
            mixed_precision=self.precision.mixed_precision, gradient_accumulation_steps=run.accum_grad_iters,
            cpu=device.type == "cpu", log_with=run.report_to or None,
        )  # fmt: skip
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.output_dir = Path(run.output_dir)
        self.total_steps = run.max_epoch * run.iters_per_epoch

        self.bare_model = model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if not self.trained:
            raise UserError("nothing to train: every part of the model is frozen")
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen_names(model))
        optimizer = create_optimizer(run, model, device)
        # The model is on its device already; an LLM that is to be sharded stays on the CPU until then.
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer, device_placement=[False, False])
        if run.parallel == "fsdp" and self.world_size > 1:
            shard_llm(model.llama_model, self.accelerator.device, self.precision.llm, self.world_size)
        compiled = run.compile is True or (run.compile == "auto" and device.type == "cpu" and has_cpp_compiler())
        if compiled:
            log.info("compiling the layers: the first step takes half a minute or more")
            torch._dynamo.config.suppress_errors = run.compile == "auto"  # what fails is told, and runs as it is
            model.compile_layers()
        self.schedule = LR_SCHEDULES.get(run.lr_sched)
        self.average = WeightAverage(model.trained_tensors, run.ema_decay) if run.ema_decay else None

        self.step = 0
        self.loader = task.build_loader(self.rank, self.world_size, run.seed)
        self.monitor = DataMonitor(self.output_dir, run.max_bad_share, self.rank)
        self.guard = StepGuard(run.max_bad_steps)
        # The counter sees neither compiled layers nor quantized products.
        self.throughput = Throughput(device, count_flops=not (compiled or config.model.low_resource))
        self.signals = StopSignals()
        self.progress = Progress(run, self.accelerator, self.output_dir, self.total_steps)
        self.validation = Validation(self)
        self.checkpoints = Checkpointing(self)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or validation has ended the run."""
        return self.step >= self.total_steps or self.validation.exhausted

    def train(self) -> None:
        """Train to the end, from the newest checkpoint when `run.resume` is auto."""
        with lock_folder(self.output_dir, self.rank), self.signals:
            torch.manual_seed(self.run.seed + self.rank)
            self.checkpoints.resume()
            if self.finished and not self.validation.missing:
                more = "run.early_stop" if self.step < self.total_steps else "run.max_epoch"
                log.info(
                    "this run has finished after step %d: %s; raise %s to go on, or write another run.output_dir, or "
                    "run.resume=never", self.step, self.output_dir, more,
                )  # fmt: skip
                return
            if self.checkpoints.last:
                log.info("going on from %s (step %d)", self.checkpoints.last, self.step)
            self.validation.try_samples()
            with self.progress.opened(self.step, self.checkpoints.config), worker_faults_explained():
                log.info(
                    "training %s parameters on %s x %d, %s, steps %d to %d, into %s",
                    f"{sum(p.numel() for p in self.trained):,}", self.accelerator.device.type, self.world_size,
                    self.precision.mixed_precision.replace("no", "fp32"), self.step, self.total_steps, self.output_dir,
                )  # fmt: skip
                try:
                    self._loop()
                finally:
                    getattr(self.loader, "close", lambda: None)()  # a task's own loader may have no processes
            self._log_end()

    def _loop(self) -> None:
        self.model.train()
        batches = iter(self.loader)
        self.checkpoints.saved_at = time.monotonic()
        self.checkpoints.note_position()
        self.signals.phase = STEP
        if self.validation.missing:
            self.validation.run_if_due()
        while not self.finished:
            tick, run = time.monotonic(), self.run
            lr = self.schedule(
                self.step, total_steps=self.total_steps, init_lr=run.init_lr, min_lr=run.min_lr,
                warmup_lr=run.warmup_lr, warmup_steps=run.warmup_steps,
            )  # fmt: skip
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss = self._backward(batches)
            norm = self.accelerator.clip_grad_norm_(self.trained, run.grad_clip or float("inf"))  # before clipping
            loss, norm, stop, save = self._all_reduce_step_facts(loss, norm)
            stepped = self._optimizer_step(loss, norm)
            self.step += 1
            if self.average:
                self.average.update(self.step)
            seconds = time.monotonic() - tick
            self.throughput.seconds += seconds
            self.signals.patience = max(self.signals.patience, 3 * seconds)
            self.checkpoints.note_position()
            self._log_step(loss, norm, lr, stepped, seconds)
            self.checkpoints.save_if_due(bool(stop or save))
            if stop and not self.finished:
                self._stop(self.signals.received or signal.SIGTERM)
            self.validation.run_if_due()

    def _backward(self, batches) -> torch.Tensor:
        """Compute the gradient of `accum_grad_iters` batches; return the mean of their losses."""
        losses = []
        for _ in range(self.run.accum_grad_iters):
            with self.interruptible(), self.throughput.waiting():
                dataset, samples = next(batches)
            self.monitor.see(dataset, samples)
            batch = self.task.build_batch(self.bare_model, samples)
            with self.accelerator.accumulate(self.model), self.throughput.counting(batch):
                loss = self.task.train_step(self.model, batch)
                self.accelerator.backward(loss)  # divides by accum_grad_iters
            losses.append(loss.detach().float())
        return torch.stack(losses).mean()

    def _all_reduce_step_facts(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float, int, bool]:
        """(mean loss, mean gradient norm, number of a stop signal or 0, whether a checkpoint is due by the clock), the
        same in all processes. The host waits for the device here, once a step."""
        due = self.is_main and self.checkpoints.due_by_clock()
        of_host = torch.tensor([self.signals.received, due], dtype=torch.float32).to(loss.device, non_blocking=True)
        facts = torch.cat([torch.stack([loss, norm.to(loss)]), of_host])
        if self.world_size > 1:
            facts = self.accelerator.reduce(facts, "sum")
        loss, norm, stop, due = facts.tolist()
        return loss / self.world_size, norm / self.world_size, int(stop), bool(due)

    def _optimizer_step(self, loss: float, norm: float) -> bool:
        """Change the weights, unless the loss or the gradient is not finite. Returns whether they were changed."""
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler and not math.isfinite(norm) else None
        stepped = self.guard.should_step(self.step + 1, loss, norm, scale)
        if stepped:
            self.optimizer.step()
        elif scaler:
            scaler.update()  # lowers the scale; and the gradient was unscaled, as it will be in the next step
        self.optimizer.zero_grad()
        return stepped

    @contextmanager
    def interruptible(self, around: AbstractContextManager | None = None) -> Iterator[None]:
        """A signal breaks off this block, but not the context `around` it, and the run ends with a checkpoint of the
        last whole step. With several processes, which must end their step together, it is only noted."""
        try:
            with around or nullcontext(), self.signals.in_phase(STEP if self.world_size > 1 else None):
                yield
        except KeyboardInterrupt:
            if self.world_size > 1:
                raise  # a checkpoint needs all processes
            self.checkpoints.save_step()
            self._stop(self.signals.received)

    def _stop(self, number: int) -> NoReturn:
        where = f"after step {self.step}; saved" if self.step else "before the first step"
        raise Stopped(f"stopped by a signal {where}. The same command goes on from there", number)

    def _log_step(self, loss: float, norm: float, lr: float, stepped: bool, seconds: float) -> None:
        run = self.run
        rate = run.batch_size_train * run.accum_grad_iters * self.world_size / seconds
        if self.is_main and (self.step % run.log_freq == 0 or self.step == 1):
            values = {"loss": loss, "grad_norm": round(norm, 6)} if stepped else {"skipped": True}
            values |= self.throughput.row()
            self.progress.write(self.step, lr=lr, samples_per_second=round(rate, 2), **values)
        self.progress.step_done(self.step, loss, lr, rate)

    def _log_end(self) -> None:
        early, best, folder = self.step < self.total_steps, self.validation, self.output_dir
        what = f"stopped early at step {self.step}, the validation loss no longer falls," if early else "done"
        facts = [f"Checkpoint: {self.checkpoints.last}", f"loss curve: {folder / 'loss.png'}", self.monitor.summary()]
        if best.wanted:
            facts.append(f"best validation loss {best.best:.4f} at step {best.best_step}: {folder}/checkpoint_best.pth")
        if self.guard.skipped:
            facts.append(f"{self.guard.skipped} steps were not finite and skipped")
        log.info("%s in %s. %s", what, hms(self.progress.seconds), "; ".join(facts))


def frozen_names(model: nn.Module) -> list[str]:
    """What DDP must not broadcast: frozen parameters (13B of them), and the buffers of modules without a trained
    parameter. Batch-norm statistics of a trained module are not among them."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for prefix, module in model.named_modules():
        if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            names += [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)]
    return names
