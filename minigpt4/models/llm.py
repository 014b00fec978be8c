"""The frozen language model and its tokenizer, from a folder in transformers' format or a GGUF file."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, normalizers, pre_tokenizers

from ..common.errors import CheckpointError, ConfigError, UserError
from ..common.identify import KINDS, identify
from ..common.packages import require_packages
from .llm_checks import check_finite, check_not_quantized, check_tokenizer_files, read_json, without_config

log = logging.getLogger("minigpt4")


def check_id(number: object, size: int | None, what: str, remedy: str) -> None:
    """Raises CheckpointError for a token id that is none of the vocabulary's `size` ids. -1 and null mean no token."""
    if isinstance(number, int) and size is not None and not -1 <= number < size:
        raise CheckpointError(
            f"model.llama_model: {what} is {number}, outside the LLM's vocabulary, whose ids are 0 to {size - 1} "
            f"(vocab_size in config.json); {remedy}"
        )


def vocabulary_size(folder: Path) -> int | None:
    """vocab_size of a folder's config.json; None where it does not say it."""
    config = read_json(folder / "config.json", optional=True)
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def check_folder(folder: Path) -> None:
    """Raises CheckpointError when this is not the folder of an LLM in 16 or 32 bit."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"model.llama_model: {folder} {without_config(folder)}")
    check_not_quantized(folder)


def llm_source(path: str) -> tuple[str, dict[str, str]]:
    """model.llama_model -> (folder, further options) for transformers' `from_pretrained`.
    Raises CheckpointError when it is neither the folder of an LLM nor a GGUF file."""
    if not path.endswith(".gguf"):
        check_folder(Path(path))
        return path, {}
    facts = identify(path)
    if facts.kind != "gguf":
        raise CheckpointError(f"model.llama_model: {path} is {KINDS[facts.kind]}; download it again")
    require_packages(f"model.llama_model: {path}", "gguf", "gguf")
    return str(Path(path).parent), {"gguf_file": Path(path).name}


def create_llm(config: transformers.PreTrainedConfig | str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """A causal LM on the meta device, which takes no memory. `config` is transformers' or model.llama_model.
    Raises CheckpointError when it is not the config of a causal LM."""
    try:
        if isinstance(config, str):
            folder, source = llm_source(config)
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **source)
        with torch.device("meta"):
            llm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except UserError:
        raise
    except Exception as error:  # transformers raises any kind
        raise CheckpointError(f"model.llama_model: no causal LM can be built from its config.json: {error}") from error
    return llm.requires_grad_(False).eval()


@torch.no_grad()
def check_head(llm: transformers.PreTrainedModel, device: torch.device) -> None:
    """Raises CheckpointError when the weights are damaged, or when lm_head does not give the LLM's own logits, as in
    Gemma-2, which changes them. `device` is that of the inputs."""
    ids = torch.tensor([[1, 2]], device=device)
    hidden = llm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    ours = llm.get_output_embeddings()(hidden)
    theirs = llm(input_ids=ids).logits
    check_finite(llm, theirs)
    if not torch.allclose(ours.float().cpu(), theirs.float().cpu(), atol=1e-3, rtol=1e-2):
        raise CheckpointError(
            f"model.llama_model: {type(llm).__name__} changes its logits after lm_head; such an LLM is not supported"
        )


def load_tokenizer(path: str, pad_token: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The LLM's tokenizer, which pads on the right. The default padding token is EOS, as in the original."""
    folder, source = llm_source(path)
    files = Path(folder)
    if any(files.glob("tokenizer.*")):
        source = {}  # the tokenizer's own files say more than a GGUF file
    check_tokenizer_files(files)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, add_bos_token=True, padding_side="right", **source
        )
    except Exception as error:  # transformers raises any kind
        raise CheckpointError(f"model.llama_model: {path} has no tokenizer that can be read: {error}") from error
    # transformers 5 builds a LlamaTokenizer anew; others (Mistral) do what their tokenizer.json says, if there is one.
    rebuilt = isinstance(tokenizer, transformers.LlamaTokenizer) or not (files / "tokenizer.json").is_file()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    metaspace = getattr(backend, "pre_tokenizer", None)  # sentencepiece's kind in a GGUF file puts a space before texts
    spaces = isinstance(metaspace, pre_tokenizers.Metaspace) and metaspace.prepend_scheme != "never"
    if backend and rebuilt and ((files / "tokenizer.model").is_file() or (source and spaces)):
        _read_as_sentencepiece(tokenizer)
    if pad_token is not None and pad_token not in tokenizer.get_vocab():
        raise ConfigError(f"model.pad_token: {pad_token!r} is not a token of {path}")
    tokenizer.pad_token = pad_token or tokenizer.eos_token
    size, remedy = vocabulary_size(files), "take the tokenizer that belongs to this LLM"
    check_id(tokenizer.vocab_size - 1, size, f"{path}: the largest id of the tokenizer", remedy)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        what = f"{path}: the id of the tokenizer's {name} {getattr(tokenizer, name)!r}"
        check_id(getattr(tokenizer, f"{name}_id"), size, what, f"{remedy}, or name another {name} in its files")
    return tokenizer


def pad_apart_from(tokenizer: transformers.PreTrainedTokenizerBase, end_ids: list[int]) -> None:
    """Replace a padding token that is among `end_ids`, which end an answer and must be learned, by the unknown token or
    the first special token of the vocabulary but BOS."""
    if tokenizer.pad_token_id not in end_ids:
        return
    special = [(i, str(token)) for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    for i, name in [(tokenizer.unk_token_id, tokenizer.unk_token), *special]:
        if i is not None and i not in {*end_ids, tokenizer.bos_token_id}:
            tokenizer.pad_token = name
            return


def _read_as_sentencepiece(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Tokenize as the original's sentencepiece in transformers 4: keep a leading space, and split the text at special
    tokens first. transformers 5 drops that space, and finds `<unk>` only after a space."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    for token in tokenizer.added_tokens_decoder.values():
        keys = ("single_word", "lstrip", "rstrip", "special")
        raw = AddedToken(token.content, normalized=False, **{key: getattr(token, key) for key in keys})
        (backend.add_special_tokens if token.special else backend.add_tokens)([raw])
