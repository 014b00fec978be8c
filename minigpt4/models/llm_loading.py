"""The frozen language model's weights: read once, cast or quantized one after the other, put where they belong."""

import contextlib
import io
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..common.checkpoint import HARMLESS
from ..common.errors import CheckpointError, ConfigError
from ..common.memory import MappedFiles, give_back_freed
from .llm import check_head, llm_source
from .llm_checks import weight_files
from .low_resource import Quantize, bits_of, check_bitsandbytes, quantizer


def load_llm(
    path: str, dtype: torch.dtype, device: torch.device, *, low_resource: bool | str = False,
    device_map: str | None = None, max_memory: dict | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A causal LM with frozen weights, in eval mode.

    Args:
        path: folder with config.json and weights (safetensors or .bin, sharded or not), or a .gguf file.
        dtype: of the weights, and what quantized ones compute in.
        device: where it goes; with `device_map`, where its inputs come from.
        low_resource: model.low_resource.
        device_map: `auto`: layers go to the GPUs in turn, then to main memory, then to disk.
        max_memory: with device_map, device -> most bytes, e.g. {0: "20GiB", "cpu": "60GiB"}.
    Raises:
        CheckpointError: the weights are not what they should be.
        ConfigError: this machine cannot do what is asked.
    """
    folder, source = llm_source(path)
    stored = dtype if source else _stored_dtype(Path(folder))
    bits = bits_of(low_resource)
    # On CPU the fused attention's backward is the slow part: eager takes 0.7 of its time for the small model's step.
    options = {"attn_implementation": "sdpa" if device.type == "cuda" else "eager", **source}
    if device_map:
        on_disk = tempfile.mkdtemp(prefix="minigpt4-offload-")
        options |= {"device_map": device_map, "max_memory": max_memory or None, "offload_folder": on_disk}
        if bits:
            options["quantization_config"] = _spread_bits(bits, dtype, device)
        llm = _read(path, folder, dtype=dtype, **options)
        weakref.finalize(llm, shutil.rmtree, on_disk, ignore_errors=True)
    else:
        # In the files' own dtype the weights stay mapped; transformers' own cast would keep file and copy in memory.
        llm = _read(path, folder, dtype=stored, **options)
        _settle(llm, device, stored, dtype, quantizer(bits, device) if bits else None)
        llm.is_loaded_in_8bit, llm.is_loaded_in_4bit = bits == 8 and device.type == "cuda", bits == 4  # peft asks
    llm.requires_grad_(False).eval()
    check_head(llm, device)
    return llm


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that holds every weight of the folder without loss.

    Raises:
        CheckpointError: a weight file is missing, or is none.
    """
    found = None
    for facts in weight_files(folder):
        for tensor in facts.tensors.values():
            if tensor.is_floating_point():
                found = tensor.dtype if found is None else torch.promote_types(found, tensor.dtype)
    return found or torch.float32


def _read(path: str, folder: str, **options) -> PreTrainedModel:
    try:
        with quiet_transformers():
            llm, info = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except Exception as error:  # transformers and what it is built on raise any kind
        raise CheckpointError(f"model.llama_model: {path} cannot be loaded: {error}") from error
    unexpected = [name for name in info["unexpected_keys"] if not HARMLESS.search(name)]
    for what, names in (
        ("missing", info["missing_keys"]),
        ("of another shape", [f"{name}: {tuple(a)} in the file, {tuple(b)} in the model" for name, a, b in
                              info["mismatched_keys"]]),
        ("unexpected", unexpected),
    ):  # fmt: skip
        if names:
            raise CheckpointError(
                f"model.llama_model: {path} does not fit its config.json: {what}: "
                f"{', '.join(sorted(names)[:5])} ({len(names)} in all)"
            )
    return llm


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings and progress bars of transformers inside; what is wrong is told by us."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # The GGUF reader's bar is a bare tqdm that heeds no setting of transformers.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def _settle(
    llm: PreTrainedModel, device: torch.device, stored: torch.dtype, dtype: torch.dtype, quantize: Quantize | None
) -> None:
    """Every mapped weight -> `dtype` on `device`, or quantized; the file's pages are let go. Weights that are in their
    place already stay mapped: of them there is no second copy. The head is never quantized, as in transformers."""
    mapped, head = MappedFiles(), llm.get_output_embeddings()

    def place(parameter: nn.Parameter, where: torch.device | str) -> None:
        old = parameter.data
        new = old.to(where, dtype if old.dtype == stored else old.dtype)
        parameter.data = new
        if new.data_ptr() != old.data_ptr():
            mapped.let_go(old)

    def place_own(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            place(parameter, device)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), name not in module._non_persistent_buffers_set)

    place_own(llm)
    # Not a list of all modules: it would keep each Linear alive beside what stands in for it.
    for parent in [module for module in llm.modules() if any(True for _ in module.children())]:
        for name, child in list(parent.named_children()):
            if not quantize or type(child) is not nn.Linear or child is head:
                place_own(child)
                continue
            before = child.weight.data
            for parameter in child.parameters():
                place(parameter, "cpu")
            setattr(parent, name, quantize(child))
            mapped.let_go(before)
            del child, before
            give_back_freed()
    for config in (llm.config, llm.config.get_text_config()):
        config.dtype = dtype


def _spread_bits(bits: int, dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig:
    """What tells transformers to quantize an LLM that accelerate spreads over devices."""
    if device.type != "cuda":
        raise ConfigError("model.low_resource: with device_map only on CUDA; write low_resource: False on CPU")
    check_bitsandbytes(bits)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
