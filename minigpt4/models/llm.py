"""The frozen language model and its tokenizer, from a folder in transformers format."""

import logging
from pathlib import Path

import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..common.errors import CheckpointError, ConfigError

log = logging.getLogger("minigpt4")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware; without it bf16 is slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def llm_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.llama_precision on this device. `auto`: on CUDA bf16, or fp16 (the original's) on GPUs without it; on CPU
    bf16 if fast, else fp32. It follows run.amp_dtype's `auto`: under autocast of another dtype every frozen weight
    would be cast and the copy kept for backward, 26 GB for Vicuna-13B."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def check_folder(path: str) -> None:
    """Raises CheckpointError when `path` is not the folder of an LLM."""
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"model.llama_model: {path} has no config.json; write the folder of an LLM in transformers format"
        )


def load_llm(path: str, dtype: torch.dtype, device: torch.device, low_resource: bool = False) -> PreTrainedModel:
    """A causal LM with frozen weights, in eval mode, on `device`.

    Args:
        path: folder with config.json and weights (safetensors or .bin, sharded or not).
        low_resource: 8-bit weights: bitsandbytes on CUDA, torchao's int8 weights elsewhere.
    Raises:
        CheckpointError: the folder does not hold what it should.
    """
    check_folder(path)
    # On CPU the fused attention's backward is the slow part: eager takes 0.7 of its time for the small model's step.
    options = {"attn_implementation": "sdpa" if device.type == "cuda" else "eager"}
    if low_resource and device.type == "cuda":
        from transformers import BitsAndBytesConfig

        options |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    elif low_resource:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        options |= {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        llm, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"model.llama_model: {path} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if info["missing_keys"] or info.get("mismatched_keys"):
        bad = [*sorted(info["missing_keys"]), *map(str, info.get("mismatched_keys") or [])]
        raise CheckpointError(
            f"model.llama_model: {path}: missing or misshapen weights: {', '.join(bad[:5])} ({len(bad)})"
        )
    if not low_resource:
        llm.to(device)
    llm.requires_grad_(False).eval()
    check_head(llm)
    return llm


def head_input_hidden_states(llm: PreTrainedModel, **inputs) -> torch.Tensor:
    """Hidden states (B, T, D_llm) that `lm_head` reads: the body alone, so no logits are made."""
    return llm.get_decoder()(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def check_head(llm: PreTrainedModel) -> None:
    """Body + output embeddings must give the LLM's own logits (some, like Gemma-2, bend theirs).

    Raises:
        CheckpointError: this LLM cannot be trained through its hidden states.
    """
    ids = torch.tensor([[1, 2]], device=llm.device)
    ours = llm.get_output_embeddings()(head_input_hidden_states(llm, input_ids=ids))
    theirs = llm(input_ids=ids).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-2):
        raise CheckpointError(
            f"model.llama_model: {type(llm).__name__} changes its logits after lm_head; such an LLM is not supported"
        )


def load_tokenizer(path: str, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, right-padding, with a padding token.

    Args:
        pad_token: a token of the vocabulary, or None: EOS, as in the original.
    """
    check_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, add_bos_token=True, padding_side="right")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model.llama_model: {path} has no tokenizer that can be read: {error}") from error
    if (Path(path) / "tokenizer.model").is_file():
        _keep_leading_space(tokenizer)
    if pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    elif pad_token in tokenizer.get_vocab():
        tokenizer.pad_token = pad_token
    else:
        raise ConfigError(f"model.pad_token: {pad_token!r} is not a token of {path}")
    return tokenizer


def _keep_leading_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """transformers 5 drops a leading space that sentencepiece keeps; read text as sentencepiece does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
