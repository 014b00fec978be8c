"""Loading the frozen LLM's weights: transformers reads, casts, quantizes and places them; we check that they fit."""

from __future__ import annotations

import ctypes
import functools
import logging
import shutil
import sys
import tempfile
import weakref
from pathlib import Path

import torch
import transformers
from torch import nn

from ..common.checkpoint import HARMLESS
from ..common.errors import CheckpointError, ConfigError, some
from ..common.logger import quiet_transformers
from ..common.packages import require_packages
from .llm import check_head, llm_source
from .llm_checks import weight_files


def load_llm(
    path: str, dtype: torch.dtype, device: torch.device, *, low_resource: bool | str = False,
    device_map: str | None = None, max_memory: dict | None = None, attn_implementation: str = "eager",
) -> transformers.PreTrainedModel:  # fmt: skip
    """A causal LM with frozen weights, in eval mode, from the folder or .gguf file `path`. The other arguments are keys
    of `model`.

    Args:
        dtype: of the weights, and what quantized ones compute in. Weights that are stored in it stay memory-mapped on
            the CPU, so several processes of a machine share one copy.
        device: of the LLM; with `device_map`, of its inputs.
    """
    folder, source = llm_source(path)
    stored_dtype(path)  # names a weight file that is missing or damaged
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": {"": device}, **source}
    if bits := bits_of(low_resource):
        options["quantization_config"] = quantization_config(bits, dtype, device, bool(device_map))
    if device_map:
        on_disk = tempfile.mkdtemp(prefix="minigpt4-offload-")
        options |= {"device_map": device_map, "max_memory": max_memory or None, "offload_folder": on_disk}
    try:
        with quiet_transformers():
            llm, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except ImportError as error:  # transformers names the package that attn_implementation needs
        raise ConfigError(f"model.attn_implementation: {attn_implementation}: {error}") from error
    except Exception as error:  # transformers raises any kind
        raise CheckpointError(f"model.llama_model: {path} cannot be loaded: {error}") from error
    shapes = [f"{n}: {tuple(a)} in the file, {tuple(b)} in the model" for n, a, b in info["mismatched_keys"]]
    unexpected = [name for name in info["unexpected_keys"] if not HARMLESS.search(name)]
    for what, names in {"missing": info["missing_keys"], "of another shape": shapes, "unexpected": unexpected}.items():
        if names:
            raise CheckpointError(
                f"model.llama_model: {path} does not fit its config.json: {what}: {some(sorted(names))}"
            )
    if device_map:
        weakref.finalize(llm, shutil.rmtree, on_disk, ignore_errors=True)
    allow_repacking(llm, False)
    # glibc keeps the freed full matrices of a small LLM (those below 32 MB) after they were quantized.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    llm.requires_grad_(False).eval()
    check_head(llm, device)
    return llm


def stored_dtype(path: str) -> torch.dtype | None:
    """The dtype that holds every weight of the LLM's folder without loss; None for a GGUF file."""
    folder, source = llm_source(path)
    if source:
        return None
    try:
        files = weight_files(Path(folder))
    except CheckpointError as error:
        raise CheckpointError(f"model.llama_model: {error}") from None
    dtypes = {t.dtype for facts in files for t in facts.tensors.values() if t.is_floating_point()}
    return functools.reduce(torch.promote_types, dtypes or {torch.float32})


def bits_of(low_resource: bool | str) -> int | None:
    """model.low_resource -> bits of a weight: True and `8bit` 8, `4bit` 4, False None."""
    return {"8bit": 8, "4bit": 4}.get(low_resource, 8 if low_resource is True else None)


def quantization_config(
    bits: int, dtype: torch.dtype, device: torch.device, spread: bool = False
) -> transformers.BitsAndBytesConfig | transformers.TorchAoConfig:
    """transformers' config that quantizes all linear layers but the output head; `spread` with model.device_map.

    8 bit on CUDA is LLM.int8(): columns with a value above 6.0 stay in 16 bit (transformers' default threshold). 8 bit
    on CPU is torchao's: int8 weights, one scale a row. 4 bit is NF4, with a scale for each 64 weights.
    """
    if spread and device.type != "cuda":
        raise ConfigError("model.low_resource: with device_map only on CUDA; write low_resource: False on CPU")
    if bits == 8 and device.type == "cpu":
        require_packages("model.low_resource: 8 bit on CPU", "int8", "torchao")
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    require_packages(f"model.low_resource: {bits} bit on {device.type}", "gpu", "bitsandbytes")
    # Without the optional package `kernels` it would tell at each start of a faster routine that is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=spread)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def allow_repacking(llm: nn.Module, allowed: bool) -> None:
    """Allow 4-bit layers on CPU to repack their weights at the first forward without gradients. That is 2-3 times as
    fast, but has no backward: gradients would be lost without an error."""
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = allowed and torch.cpu._is_avx512_bf16_supported()
