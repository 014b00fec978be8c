"""The dtype that each part computes in. Device, `run` and `model` keys are resolved and checked together here."""

import functools
import platform
import timeit
from dataclasses import dataclass

import torch

from .errors import ConfigError
from .schema import ModelConfig, RunConfig

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Precision:
    """The resolved dtypes. `str()` gives the line for people: `amp bf16, LLM bf16, ViT fp16 (NVIDIA A100)`."""

    amp: torch.dtype | None  # autocast of the training step; None: no autocast
    llm: torch.dtype
    vit: torch.dtype
    device: str  # name of the hardware

    @property
    def mixed_precision(self) -> str:
        """The value of accelerate's `mixed_precision`: no, bf16 or fp16."""
        return NAMES[self.amp] if self.amp else "no"

    def __str__(self) -> str:
        amp = NAMES[self.amp] if self.amp else "off"
        return f"amp {amp}, LLM {NAMES[self.llm]}, ViT {NAMES[self.vit]} ({self.device})"


def resolve_precision(
    model: ModelConfig, device: torch.device, run: RunConfig | None = None, stored: torch.dtype | None = None
) -> Precision:
    """Resolve every `auto`. Raises ConfigError: the LLM's dtype differs from autocast's.

    Args:
        run: the training run; None for a chat, which uses no autocast.
        stored: dtype of the LLM's weight files. A chat on CUDA keeps fp16 files in fp16: a cast to bf16 would change
            87 % of Vicuna's weights (mean relative error 1.4e-3).
    """
    half, cuda = fast_half_dtype(device), device.type == "cuda"
    amp = None
    if run and run.amp:
        amp = DTYPES.get(run.amp_dtype, half if cuda else None)  # no autocast on a CPU, unless the config names a dtype
    kept = stored if run is None and cuda and stored == torch.float16 else None
    llm = DTYPES.get(model.llama_precision) or amp or kept or half or torch.float32
    if amp and llm != amp:
        other = "run.amp: False" if llm == torch.float32 else f"run.amp_dtype: {NAMES[llm]}"
        raise ConfigError(
            f"model.llama_precision: {NAMES[llm]}, but autocast computes in {NAMES[amp]} (run.amp_dtype: "
            f"{run.amp_dtype}): it would copy every matrix of the LLM and keep the copies for backward; write "
            f"model.llama_precision: auto, or {other}"
        )
    vit = DTYPES[model.vit_precision]
    if not model.freeze_vit or (device.type == "cpu" and vit != half):
        vit = torch.float32  # autocast casts a trained ViT; a CPU has no fp16, and often no fast bf16
    elif cuda and vit == torch.bfloat16:
        vit = half
    return Precision(amp, llm, vit, _hardware(device))


def fast_half_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit dtype that this device computes fast in: bf16, or fp16 on GPUs before Ampere; None: fp32 is faster."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            # A T4 and a V100 emulate bf16, which PyTorch counts as support by default.
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if cpu_bf16_is_faster() else None
    return torch.bfloat16  # meta


@functools.cache
def cpu_bf16_is_faster() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32, by a measurement of some milliseconds.

    The instruction flag does not tell: with AVX512-BF16 but without AMX, bf16 takes 1.4 to 1.5 times as long.
    """
    return _matmul_seconds(torch.bfloat16) < _matmul_seconds(torch.float32)


def _matmul_seconds(dtype: torch.dtype) -> float:
    """The best of four 512 x 576 x 1536 products; the first of them also warms up."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=4))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} CPU, bf16 is {'faster' if cpu_bf16_is_faster() else 'slower'} than fp32"
    return device.type
