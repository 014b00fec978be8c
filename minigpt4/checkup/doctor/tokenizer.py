"""The doctor on the LLM's tokenizer: can it be read, does it fit the weights, and whose is it?"""

from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from ...common.errors import UserError, some
from ...models.llm import load_tokenizer
from ...models.llm_checks import read_json, tokenizer_faults
from ...tools.vicuna.tokenizer import PAD
from ...tools.vicuna.verify import read_record
from .llm import VICUNA, LlmFolder
from .page import OK, WRONG, Row

FETCH = "fetch the tokenizer's files from where the weights came"

# What `family` tells apart, in words that follow "this looks like".
FAMILIES = {
    "vicuna_v0": "Vicuna v0",
    "v0_without_pad": "Vicuna v0 without its added_tokens.json",
    "grown": "a LLaMA that was grown by tokens of its own",
    "llama": "raw LLaMA, not Vicuna",
    "vicuna_later": "Vicuna v1.1 or later, not v0",
    "llama_or_vicuna_later": "raw LLaMA, or Vicuna v1.1 or later; their files cannot be told apart",
    "llama2": "Llama 2, or Vicuna v1.5 that was made from it",
    "chatml": "an LLM that talks ChatML",
    "other": "another LLM",
}


def look_at_tokenizer(folder: LlmFolder, pad_token: str | None) -> tuple[list[Row], Any]:
    """Rows, and the tokenizer as the model loads it (None when it cannot be loaded).

    Args:
        pad_token: model.pad_token.
    """
    rows: list[Row] = []

    def wrong(text: str, do: str) -> None:
        rows.append(Row("Language", WRONG, "tokenizer", text, do))

    settings = _check_files(folder.path, wrong)
    if rows:
        return rows, None
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = load_tokenizer(str(folder.path), pad_token)
    except Exception as error:  # beside ours, transformers and what it is built on raise any kind
        ours = isinstance(error, UserError) and str(error).startswith("model.pad_token")
        first = (str(error).splitlines() or [type(error).__name__])[0]
        first, _, remedy = first.partition("; ") if isinstance(error, UserError) else (first, "", "")
        wrong(f"cannot be loaded: {first}", "write a token that it has, or null" if ours else remedy or FETCH)
        return rows, None
    finally:
        transformers_logging.set_verbosity(verbosity)

    _check_bos(folder.config, tokenizer, settings, wrong)
    if folder.vocabulary:
        _check_ids(folder.vocabulary, tokenizer, wrong)
    special = {*map(str, tokenizer.added_tokens_decoder.values()), tokenizer.bos_token, tokenizer.eos_token}
    if pad_token and pad_token not in {*special, tokenizer.unk_token}:
        wrong(
            f"model.pad_token {pad_token!r} is an ordinary word: padding is never trained on, so it is not learned",
            "write null, or a special token of the vocabulary",
        )
    if not rows:
        text = f"{len(tokenizer):,} tokens; BOS {tokenizer.bos_token} = {tokenizer.bos_token_id}, "
        text += f"EOS {tokenizer.eos_token} = {tokenizer.eos_token_id}, padding {tokenizer.pad_token}"
        rows.append(Row("Language", OK, "tokenizer", text))
    return rows, tokenizer


def _check_files(path: Path, wrong) -> dict[str, Any]:
    """The settings that the tokenizer's files name."""
    for text, do in tokenizer_faults(path):
        wrong(text, do)
    settings = read_json(path / "special_tokens_map.json")[0] | read_json(path / "tokenizer_config.json")[0]
    return settings


def _check_bos(config: dict[str, Any], tokenizer, settings: dict[str, Any], wrong) -> None:
    expected, bos = config.get("bos_token_id"), tokenizer.bos_token_id
    llama = has_llama_pieces(tokenizer)
    if bos is None and isinstance(expected, int) and llama:
        wrong(
            f"has no BOS, but config.json has bos_token_id {expected}: a prompt would begin without it",
            'write "bos_token": "<s>" into tokenizer_config.json',
        )
    elif isinstance(expected, int) and bos not in (None, expected):
        wrong(f"its BOS {tokenizer.bos_token} is {bos}, by config.json {expected}: another model's tokenizer?", FETCH)
    elif settings.get("add_bos_token") is False and llama:
        wrong(
            "add_bos_token is false in tokenizer_config.json, and LLaMA was trained with BOS (this project adds it all "
            "the same; other programs that open the folder do not)",
            'write "add_bos_token": true',
        )
    if tokenizer.eos_token_id is None:
        wrong("has no EOS, which is also the padding", 'write "eos_token": "</s>" into tokenizer_config.json')


def _check_ids(rows: int, tokenizer, wrong) -> None:
    """Every id must have a row in the embedding, and most rows a token."""
    ids = tokenizer.get_vocab()
    beyond = sorted((i, token) for token, i in ids.items() if i >= rows)
    if beyond:
        v0 = PAD in (token for _, token in beyond)
        wrong(
            f"{some(f'{token} = {i}' for i, token in beyond)} past the embedding's {rows:,} rows: "
            + ("the tokenizer is Vicuna v0's, the weights are not" if v0 else "another model's tokenizer"),
            VICUNA if v0 else FETCH,
        )
    elif len(ids) < 0.9 * rows:  # some models have a few spare rows
        wrong(f"has {len(ids):,} tokens, the embedding {rows:,} rows: another model's tokenizer", FETCH)


def has_llama_pieces(tokenizer) -> bool:
    """LLaMA's kind of vocabulary: sentencepiece with byte pieces, and <unk> <s> </s> in front."""
    ids = tokenizer.get_vocab()
    return "<0x0A>" in ids and ids.get("<s>") == 1 and ids.get("</s>") == 2


def family(folder: LlmFolder, tokenizer) -> tuple[str, str]:
    """Which LLM this is: (a key of FAMILIES, why).

    Vicuna v0 has one row more than LLaMA, for [PAD]. Raw LLaMA and Vicuna v1.1 have the same names, shapes and
    vocabulary: what tells them apart is what their files say of themselves, and where they say nothing, nothing does.
    """
    config, ids, rows = folder.config, tokenizer.get_vocab(), folder.vocabulary or 0
    if "<|im_start|>" in ids:
        return "chatml", "its vocabulary has <|im_start|>"
    if config.get("model_type") != "llama" or not has_llama_pieces(tokenizer):
        return "other", f"model_type {config.get('model_type')}, and a vocabulary that is not LLaMA's"
    pieces = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if rows > pieces:
        if ids.get(PAD) == pieces:
            return "vicuna_v0", f"{rows:,} rows: LLaMA's {pieces:,} and {PAD}"
        which = "v0_without_pad" if rows == pieces + 1 else "grown"
        return which, f"{rows:,} rows, but {pieces:,} pieces and no {PAD} in the tokenizer"
    found, name = f"{rows:,} rows, no {PAD}", str(config.get("_name_or_path", ""))
    if made := _recorded(folder.path):
        return made, f"{found}; prepare_vicuna.json says so"
    if "vicuna" in name.lower():
        return "vicuna_later", f"{found}; config.json names {name!r}"
    if "USER:" in str(tokenizer.chat_template or ""):
        return "vicuna_later", f"{found}; its chat template has USER:"
    if config.get("max_position_embeddings", 0) >= 4096 or config.get("rms_norm_eps") == 1e-5:
        return "llama2", f"{found}; {config.get('max_position_embeddings')} positions"
    if "llama" in name.lower():
        return "llama", f"{found}; config.json names {name!r}"
    return "llama_or_vicuna_later", found


def _recorded(path: Path) -> str:
    """What `minigpt4 prepare-vicuna` wrote down of the folder it made."""
    try:
        kind = (read_record(path) or {}).get("kind")
    except UserError:
        return ""
    return {"LLaMA": "llama", "Vicuna v1.1 or later": "vicuna_later"}.get(kind, "")
