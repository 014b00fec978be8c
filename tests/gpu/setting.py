"""What every part of the check is given, and how a measurement says that it was not run."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30
GOLDEN = Path(__file__).parents[1] / "golden" / "data"


class NotRun(Exception):
    """A measurement that this machine cannot make; its message says why. It is no failure."""


@dataclass(frozen=True)
class Setting:
    """Where a part measures.

    Args:
        small: tiny sizes, to see on a CPU that the check itself works.
        folder: an empty folder of the part's own.
        memory_folder: another one in main memory, which must not be there yet; None: not here.
    """

    device: torch.device
    small: bool
    folder: Path
    memory_folder: Path | None = None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def facts(device: torch.device) -> dict:
    """The card and the versions of what computes."""
    packages = ("transformers", "timm", "accelerate", "bitsandbytes", "flash-attn", "torchao")
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if device.type != "cuda":
        return {"card": f"{platform.machine()} CPU", "versions": found}
    card = torch.cuda.get_device_properties(device)
    memory = round(card.total_memory / GIB, 1)
    return {"card": card.name, "memory_gib": memory, "gpus": torch.cuda.device_count(), "versions": found}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, Euclidean norms over all numbers."""
    theirs = theirs.double().cpu()
    return ((ours.detach().double().cpu() - theirs).norm() / theirs.norm()).item()
