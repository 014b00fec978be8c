"""The frozen language model and its tokenizer, from a folder in transformers format."""

import logging
from pathlib import Path

import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.errors import CheckpointError, ConfigError
from ..common.identify import KINDS, identify
from .llm_checks import check_finite, check_not_quantized, check_tokenizer_files

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
    if device.type == "meta":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def vit_dtype(precision: str, device: torch.device) -> torch.dtype:
    """model.vit_precision on this device. On CPU fp16 becomes fp32, and so does bf16 where the CPU has it not."""
    dtype = DTYPES[precision]
    slow_here = device.type == "cpu" and (dtype == torch.float16 or not cpu_has_bf16())
    return torch.float32 if slow_here else dtype


def check_folder(path: str) -> None:
    """Raises CheckpointError when `path` is not the folder of an LLM."""
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"model.llama_model: {path} has no config.json; write the folder of an LLM in transformers format, "
            "or a .gguf file"
        )
    check_not_quantized(Path(path))


def llm_source(path: str) -> tuple[str, dict[str, str]]:
    """What transformers is told to read model.llama_model: its folder, and more options for a GGUF file.

    Raises:
        CheckpointError: `path` is neither the folder of an LLM nor a GGUF file.
    """
    if not path.endswith(".gguf"):
        check_folder(path)
        return path, {}
    facts = identify(path)
    if facts.kind != "gguf":
        raise CheckpointError(f"model.llama_model: {path} is {KINDS[facts.kind]}; download it again")
    return str(Path(path).parent), {"gguf_file": Path(path).name}


def create_llm(config: PreTrainedConfig | str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM on the meta device: names, shapes and dtypes, but no memory and no weight file read.

    Args:
        config: transformers' config of it; or model.llama_model, of which config.json is read, or a GGUF file's head.
    Raises:
        CheckpointError: not the config of a causal LM.
    """
    try:
        if isinstance(config, str):
            folder, source = llm_source(config)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **source)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises any kind
        raise CheckpointError(f"model.llama_model: no causal LM can be built from its config.json: {error}") from error
    return llm.requires_grad_(False).eval()


def head_input_hidden_states(llm: PreTrainedModel, **inputs) -> torch.Tensor:
    """Hidden states (B, T, D_llm) that `lm_head` reads: the body alone, so no logits are made."""
    return llm.get_decoder()(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def check_head(llm: PreTrainedModel, device: torch.device) -> None:
    """Body + output embeddings must give the LLM's own logits (some, like Gemma-2, bend theirs).

    Args:
        device: where inputs come from; an LLM spread over devices cannot tell.
    Raises:
        CheckpointError: this LLM cannot be trained through its hidden states, or its weights are damaged.
    """
    ids = torch.tensor([[1, 2]], device=device)
    ours = llm.get_output_embeddings()(head_input_hidden_states(llm, input_ids=ids))
    theirs = llm(input_ids=ids).logits
    check_finite(llm, theirs)
    if not torch.allclose(ours.float().cpu(), theirs.float().cpu(), atol=1e-3, rtol=1e-2):
        raise CheckpointError(
            f"model.llama_model: {type(llm).__name__} changes its logits after lm_head; such an LLM is not supported"
        )


def load_tokenizer(path: str, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, right-padding, with a padding token.

    Args:
        pad_token: a token of the vocabulary, or None: EOS, as in the original.
    """
    folder, source = llm_source(path)
    if any(Path(folder).glob("tokenizer.*")):
        source = {}  # the tokenizer's own files say more than what a GGUF file holds of it
    check_tokenizer_files(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, add_bos_token=True, padding_side="right", **source
        )
    except Exception as error:  # transformers and what it is built on raise any kind
        raise CheckpointError(f"model.llama_model: {path} has no tokenizer that can be read: {error}") from error
    # transformers builds a LlamaTokenizer anew; others (Mistral) do what their tokenizer.json says, where there is one.
    rebuilt = isinstance(tokenizer, LlamaTokenizer) or not (Path(folder) / "tokenizer.json").is_file()
    if rebuilt and ((Path(folder) / "tokenizer.model").is_file() or (source and _prepends_space(tokenizer))):
        _keep_leading_space(tokenizer)
    if pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    elif pad_token in tokenizer.get_vocab():
        tokenizer.pad_token = pad_token
    else:
        raise ConfigError(f"model.pad_token: {pad_token!r} is not a token of {path}")
    return tokenizer


def pad_apart_from(tokenizer: PreTrainedTokenizerBase, end_ids: list[int]) -> None:
    """Where the padding token is among `end_ids` (what ends an answer, and must be learned), take another that no text
    holds: the unknown token, else the first special token of the vocabulary but BOS."""
    if tokenizer.pad_token_id not in end_ids:
        return
    special = [(i, str(token)) for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    others = [(tokenizer.unk_token_id, tokenizer.unk_token), *special]
    usable = [name for i, name in others if i is not None and i not in {*end_ids, tokenizer.bos_token_id}]
    if usable:
        tokenizer.pad_token = usable[0]


def _prepends_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer made from a GGUF file is sentencepiece's kind, which puts a space before each text."""
    pre_tokenizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    return isinstance(pre_tokenizer, pre_tokenizers.Metaspace) and pre_tokenizer.prepend_scheme != "never"


def _keep_leading_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """transformers 5 drops a leading space that sentencepiece keeps; read text as sentencepiece does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
