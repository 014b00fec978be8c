"""Published figures of common devices (gpus.toml), and the roofline that turns counted work into seconds."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

# The fraction of its published peaks that a device reaches on average, in arithmetic and in memory alike. It was chosen
# once, so that the two run times that the paper gives come out (docs/plan.md), and is used everywhere.
EFFICIENCY = 0.6

CUDA_CONTEXT = 0.8  # GiB: CUDA's context, loaded kernels, cuBLAS workspace; 0.5 to 1.2 by GPU and CUDA version
PROCESS = 0.6  # GiB: Python with torch and transformers imported, on a CPU
IMAGES_PER_SECOND = 250  # a loader process decodes, crops and normalizes: PIL, one thread, pictures of 256 px
NETWORK = 12.5  # GB/s between nodes: 100 Gbit/s

Operation = tuple[float, int, float]  # FLOPs, bytes of a number, bytes read and written


@dataclass(frozen=True)
class Gpu:
    """One device of gpus.toml, which says what its figures are."""

    name: str
    title: str
    memory: float  # GiB, as nvidia-smi shows it
    tflops16: float
    tflops32: float
    bandwidth: float  # GB/s of the device's memory
    link: float  # GB/s to another GPU of the same machine, one direction
    source: str
    kind: str = "cuda"


GPUS = {
    name: Gpu(name, **figures)
    for name, figures in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}


def find_gpu(name: str) -> Gpu:
    """By its name, with the memory or without where there is one: `h100` is h100-80g, `a100` would be two. Raises
    ConfigError: no such device, or several."""
    found = [GPUS[name]] if name in GPUS else [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] == name]
    if len(found) == 1:
        return found[0]
    which = "there are several" if found else "not in the list (--memory, --tflops and --bandwidth change one of it)"
    raise ConfigError(f"--gpu {name}: {which}: {', '.join(gpu.name for gpu in found or GPUS.values())}")


def roofline(work: Iterable[Operation], gpu: Gpu) -> float:
    """Seconds for all of `work`: each operation takes as long as its arithmetic or its memory traffic, whichever is
    slower, both at EFFICIENCY of the published peak."""
    half, single, memory = gpu.tflops16 * 1e12, gpu.tflops32 * 1e12, gpu.bandwidth * 1e9
    return sum(max(flops / (single if size > 2 else half), moved / memory) for flops, size, moved in work) / EFFICIENCY


def all_reduce(size: int, gpu: Gpu, nproc: int, nodes: int) -> float:
    """Seconds to sum `size` bytes over all processes, in a ring: each sends 2 (n - 1) / n of them."""
    return 2 * all_gather(size, gpu, nproc, nodes)


def all_gather(size: int, gpu: Gpu, nproc: int, nodes: int) -> float:
    """Seconds until each process has all of `size` bytes that are sharded over them: each receives (n - 1) / n."""
    n = nproc * nodes
    return (n - 1) / n * size / ((NETWORK if nodes > 1 else gpu.link) * 1e9)


def card_called(name: str, memory: float = 0) -> Gpu | None:
    """The GPU that PyTorch calls `name`, e.g. `NVIDIA A100-SXM4-80GB`, with about `memory` GiB; None: not known."""
    words = re.findall(r"\w+", name.lower())
    known = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words]
    return min(known, key=lambda gpu: abs(gpu.memory - memory), default=None)
