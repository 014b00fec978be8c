"""Where a process stands: its number among the others, read from torchrun's environment, and its device."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .errors import UserError
from .logger import log

if TYPE_CHECKING:
    import torch

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class DeviceError(UserError):
    """A device that this machine does not have."""


def is_launched() -> bool:
    """Whether torchrun, or another launcher that sets all of PLACE, started this process. Some of them alone are left
    over from something else."""
    return "TORCHELASTIC_RUN_ID" in os.environ or all(name in os.environ for name in PLACE)


def rank() -> int:
    """This process's number among all processes of the run (0 without torchrun)."""
    return int(os.environ.get("RANK", 0)) if is_launched() else 0


def world_size() -> int:
    """How many processes the run has (1 without torchrun)."""
    return int(os.environ.get("WORLD_SIZE", 1)) if is_launched() else 1


def config_decides() -> None:
    """Take out of the environment what Accelerate would put above the config: its own variables, and the place among
    other processes where no launcher gave one."""
    place = (*PLACE[:3], "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    named = [n for n in os.environ if n.startswith("ACCELERATE_") or (n in place and not is_launched())]
    ignored = [f"{name}={os.environ.pop(name)}" for name in sorted(named)]
    if ignored:
        log.warning("not used: %s; the config and torchrun decide", ", ".join(ignored))


def choose_device(name: str | None = None, said: str = "", instead: str = "--device cpu") -> torch.device:
    """The device called `name` (cpu, cuda or cuda:N; None or auto: CUDA where there is one, else the CPU).
    Raises DeviceError: it is not there; `said` is what the user wrote, `instead` what to write for the CPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in (None, "auto"):
        name = "cuda" if count else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"{said}: not a device to run on; write cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        here = f"the GPUs here are 0 to {count - 1}" if count else "PyTorch finds no CUDA GPU on this machine"
        raise DeviceError(f"{said}: {here}; write {instead}")
    return torch.device("cuda", number)  # torch.cuda.set_device takes no device without a number


def training_device(name: str) -> torch.device:
    """`run.device` for this process: under torchrun each takes the GPU of its number on this machine.
    Raises DeviceError: it is not there."""
    device = choose_device(name, f"run.device={name}", "run.device=cpu")
    local_rank = os.environ.get("LOCAL_RANK") if is_launched() else None
    if device.type == "cuda" and local_rank is not None:
        said = f"torchrun --nproc-per-node, process {local_rank}"
        return choose_device(f"cuda:{local_rank}", said, "fewer processes")
    return device
