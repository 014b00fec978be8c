"""Part 4: real training runs of the tiny golden model under torchrun: nccl, a kill and a resume, FSDP, fp16."""

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch

from minigpt4.common.logger import read_log
from minigpt4.runners.sharding import shard_llm

from ..golden_set import golden_model
from .setting import GOLDEN, NotRun, Setting, relative_error

sys.path.append(str(Path(__file__).parents[1]))  # for tests/training.py

PROJECT = Path(__file__).parents[2]
STEPS, KILL_AT = 40, 12  # small: 8, 4
NEAR = 5e-2  # relative difference of the losses of two runs of the same batches; GPU kernels add up in any order


def measurements(setting: Setting) -> dict[str, Callable[[], dict]]:
    bench = Bench(setting)
    return {
        "torchrun, killed and resumed": bench.resume,
        "fsdp by torchrun": bench.fsdp,
        "fsdp, one process": partial(one_shard, setting),
        "fp16 with a scaler": bench.fp16,
    }


class Bench:
    """Runs of train.py that share the model's files and the data. They train at the same time."""

    def __init__(self, setting: Setting):
        self.setting, self.runs = setting, {}
        self.world = min(torch.cuda.device_count(), 2) if setting.cuda else 1

    def start(self, name: str, processes: int = 1, **run) -> None:
        from training import lay_config

        folder = self.setting.folder
        steps = 8 if self.setting.small else STEPS
        run = {
            "device": self.setting.device.type,
            "max_epoch": 1,
            "iters_per_epoch": steps,
            "save_every_steps": 2,
            **run,
        }
        precision = {"llama_precision": "auto", "vit_precision": "fp16" if self.setting.cuda else "fp32"}
        path = lay_config(folder, self.published, self.data, "stage1", name, precision, run)
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
        with (folder / f"{name}.txt").open("a") as log:
            self.runs[name] = subprocess.Popen(
                [sys.executable, *command, "train.py", "--cfg-path", path], cwd=PROJECT, stdout=log, stderr=log
            )

    def end(self, name: str) -> list[dict]:
        """The rows of its log."""
        if self.runs[name].wait():
            raise RuntimeError(self.said(name))
        return self.rows(name)

    def resume(self) -> dict:
        """The losses of a run that is killed and started again are those of one that nobody touched."""
        from training import lay_data, lay_model

        folder, small = self.setting.folder, self.setting.small
        self.published, self.data = lay_model(GOLDEN / "a", folder / "published"), lay_data(folder / "data")
        self.start("killed")
        if not small:
            self.start("whole")
            self.start("fsdp", self.world, parallel="fsdp")
            if self.world > 1:
                self.start("ddp", self.world)
            if self.setting.cuda:
                self.start("fp16", amp_dtype="fp16")
        while len(self.rows("killed")) < (4 if small else KILL_AT):
            if self.runs["killed"].poll() is not None:
                raise RuntimeError(f"the run ended by itself: {self.said('killed')}")
            time.sleep(0.01)
        children = psutil.Process(self.runs["killed"].pid).children(recursive=True)
        next(process for process in children if "train.py" in process.cmdline()).kill()
        self.runs["killed"].wait(30)
        before = len(self.rows("killed"))
        self.start("killed")
        rows = self.end("killed")
        if "going on from" not in self.said("killed"):
            raise RuntimeError("the second run began anew")
        backend = "nccl" if self.setting.cuda else "none: one process on a CPU"
        values = {"backend": backend, "killed_after_steps": before, "steps": len(rows)}
        return values if small else values | compared(self.end("whole"), rows)

    def fsdp(self) -> dict:
        """run.parallel=fsdp on up to two GPUs, against DDP on as many. One process trains as with ddp."""
        if self.setting.small:
            raise NotRun("small: the end-to-end tests do it")
        other = self.end("ddp" if self.world > 1 else "whole")
        return {"processes": self.world} | compared(other, self.end("fsdp"))

    def fp16(self) -> dict:
        """Real gradient norms, and how many steps overflowed."""
        if "fp16" not in self.runs:
            raise NotRun("fp16 training needs a GPU")
        rows = self.end("fp16")
        norms = [row["grad_norm"] for row in rows if "grad_norm" in row]
        real = len(norms) > len(rows) / 2 and all(math.isfinite(norm) and norm > 0 for norm in norms)
        values = {
            "steps": len(rows), "skipped": len(rows) - len(norms), "smallest_norm": min(norms, default=None),
            "largest_norm": max(norms, default=None),
        }  # fmt: skip
        return values | ({} if real else {"wrong": "gradient norms are missing, zero or not finite"})

    def rows(self, name: str) -> list[dict]:
        log = self.setting.folder / name / "log.jsonl"
        return read_log(log) if log.exists() else []

    def said(self, name: str) -> str:
        return (self.setting.folder / f"{name}.txt").read_text()[-2000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compared(one: list[dict], other: list[dict]) -> dict:
    """The largest relative difference of the losses, step by step."""
    first, second = ({row["step"]: row["loss"] for row in rows if "loss" in row} for rows in (one, other))
    apart = max((abs(first[s] - second.get(s, math.inf)) / first[s] for s in first), default=math.inf)
    values = {"loss_difference": round(apart, 6) if math.isfinite(apart) else "steps are missing"}
    return values | ({} if apart <= NEAR else {"wrong": f"the losses differ by more than {NEAR}"})


def one_shard(setting: Setting) -> dict:
    """`shard_llm` over a group of one process: loss and gradient as without it."""
    backend = "nccl" if setting.cuda else "gloo"
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= environment
    torch.distributed.init_process_group(backend, device_id=setting.device if setting.cuda else None)
    generator, found = torch.Generator().manual_seed(0), []
    try:
        for sharded in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                model = golden_model(GOLDEN / "a", Path(folder), setting.device)
            if sharded:
                shard_llm(model.llama_model, setting.device, model.precision.llm, 1)
            size = model.config.image_size
            image = torch.randn(2, 3, size, size, generator=generator.manual_seed(0))
            loss = model({"image": image, "text_input": ["a small dog", "a house"]})["loss"]
            loss.backward()
            found.append((loss.item(), model.llama_proj.weight.grad.cpu()))
    finally:
        torch.distributed.destroy_process_group()
        for key in environment:
            del os.environ[key]
    (loss, gradient), (sharded_loss, sharded_gradient) = found
    apart = abs(loss - sharded_loss) / loss, relative_error(sharded_gradient, gradient)
    values = {"backend": backend, "loss_difference": apart[0], "gradient_difference": apart[1]}
    return values | ({} if max(apart) < 1e-3 else {"wrong": "loss or gradient differ"})
