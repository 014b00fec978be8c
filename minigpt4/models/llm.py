"""The frozen language model and its tokenizer, from a folder in transformers format."""

import json
import logging
from pathlib import Path

import torch
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.errors import CheckpointError, ConfigError, UserError
from ..common.identify import KINDS, identify
from ..common.packages import require_packages
from .llm_checks import check_finite, check_not_quantized, check_tokenizer_files, without_config

log = logging.getLogger("minigpt4")


def check_id(number: object, size: int | None, what: str, remedy: str) -> None:
    """Raises CheckpointError when a token's id is none of the `size` ids of the vocabulary. -1 and null mean none."""
    if isinstance(number, int) and size is not None and not -1 <= number < size:
        raise CheckpointError(
            f"model.llama_model: {what} is {number}, outside the LLM's vocabulary, whose ids are 0 to {size - 1} "
            f"(vocab_size in config.json); {remedy}"
        )


def vocabulary_size(folder: str) -> int | None:
    """vocab_size of a folder's config.json; None where it does not say it."""
    config = _read_json(Path(folder) / "config.json")
    size = config.get("vocab_size") or _dict(config.get("text_config")).get("vocab_size")
    return size if isinstance(size, int) else None


def _read_json(file: Path) -> dict:
    """What a JSON file holds; nothing where it is missing or damaged, which transformers reports."""
    try:
        return _dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError):
        return {}


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def check_folder(path: str) -> None:
    """Raises CheckpointError when `path` is not the folder of an LLM, or its JSON files name ids that do not exist."""
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"model.llama_model: {path} {without_config(Path(path))}")
    size = vocabulary_size(path)
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    for name in ("config.json", "generation_config.json"):
        values = _read_json(Path(path) / name)
        for key, value in [*values.items(), *_dict(values.get("text_config")).items()]:
            if key in keys:
                for number in value if isinstance(value, list) else [value]:
                    check_id(number, size, f"{Path(path) / name}: {key}", "write an id of the vocabulary, or null")
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
    require_packages(f"model.llama_model: {path}", "gguf", "gguf")
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
    except UserError:
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
        _read_as_sentencepiece(tokenizer)
    if pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    elif pad_token in tokenizer.get_vocab():
        tokenizer.pad_token = pad_token
    else:
        raise ConfigError(f"model.pad_token: {pad_token!r} is not a token of {path}")
    size, remedy = vocabulary_size(folder), "take the tokenizer that belongs to this LLM"
    check_id(tokenizer.vocab_size - 1, size, f"{path}: the largest id of the tokenizer", remedy)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        what = f"{path}: the id of the tokenizer's {name} {getattr(tokenizer, name)!r}"
        check_id(getattr(tokenizer, f"{name}_id"), size, what, f"{remedy}, or name another {name} in its files")
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


def _read_as_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> None:
    """Read text as the original's tokenizer (sentencepiece, in transformers 4): it keeps a leading space, which
    transformers 5 drops, and cuts text at every special token before anything is changed in it. (transformers 5 looks
    for `<unk>` after spaces have become "▁", and finds it only after a space.)"""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
        for token in tokenizer.added_tokens_decoder.values():
            keys = ("single_word", "lstrip", "rstrip", "special")
            raw = AddedToken(token.content, normalized=False, **{key: getattr(token, key) for key in keys})
            (backend.add_special_tokens if token.special else backend.add_tokens)([raw])
