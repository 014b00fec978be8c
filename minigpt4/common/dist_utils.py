"""Where a process stands: its number among the others, read from torchrun's environment, and its device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import UserError
from .logger import log

if TYPE_CHECKING:
    import torch


class DeviceError(UserError):
    """A device that this machine does not have."""


PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
    named = [name for name in os.environ if name.startswith("ACCELERATE_")]
    if not is_launched():
        sizes = ("LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
        named += [name for name in (*PLACE[:3], *sizes) if name in os.environ]
    ignored = [f"{name}={os.environ.pop(name)}" for name in sorted(named)]
    if ignored:
        log.warning("not used: %s; the config and torchrun decide", ", ".join(ignored))


def choose_device(name: str | None = None, said: str = "", instead: str = "--device cpu") -> torch.device:
    """The device called `name`, once it is known to be there.

    Args:
        name: cpu, cuda or cuda:N; None or auto: CUDA where there is one, else the CPU.
        said: what the user wrote, for the message.
        instead: what to write for the CPU, for the message.
    Raises:
        DeviceError: it is not there.
    """
    import torch

    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"{said}: not a device to run on; write cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(f"{said}: PyTorch finds no CUDA GPU on this machine; write {instead}")
        if (device.index or 0) >= count:
            raise DeviceError(f"{said}: the GPUs here are 0 to {count - 1}; write one of these, or {instead}")
        return torch.device("cuda", device.index or 0)  # torch.cuda.set_device takes no device without a number
    return device


def training_device(name: str) -> torch.device:
    """`run.device` for this process: under torchrun each takes the GPU of its number on this machine.

    Raises:
        DeviceError: it is not there.
    """
    device = choose_device(name, f"run.device={name}", "run.device=cpu")
    local_rank = os.environ.get("LOCAL_RANK") if is_launched() else None
    if device.type == "cuda" and local_rank is not None:
        said = f"torchrun --nproc-per-node, process {local_rank}"
        return choose_device(f"cuda:{local_rank}", said, "fewer processes")
    return device
