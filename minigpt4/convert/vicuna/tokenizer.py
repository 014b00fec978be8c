"""Find the tokenizer of a LLaMA or Vicuna folder, write it as Vicuna's publishers did, and check it."""

import json
from pathlib import Path
from typing import Any

import sentencepiece

from ...common.checkpoint import atomic_save
from ...common.errors import CheckpointError
from ...models.llm import load_tokenizer
from ..sharded import write_json

PAD = "[PAD]"  # the token that Vicuna v0 has and LLaMA has not
LLAMA_PIECES = 32000
# The ids of the turn separator in LLaMA's tokenizer, alone and after a line break: MiniGPT-4 stops at these.
LLAMA_IDS = {"###": [835], "a\n###": [263, 13, 2277, 29937]}
PROBES = ("###", " ###Human: Hello, world ###Assistant: ", "a\n###", "  two spaces", "naïve 狗 \t")


def find_tokenizer(folders: list[Path]) -> Path:
    """The tokenizer.model of the first folder that has one; Meta's is one folder up.

    Raises:
        CheckpointError: there is none, the folders' tokenizers differ, or it is not LLaMA's.
    """
    found = []
    for folder in folders:
        places = [folder, folder.parent] if (folder / "params.json").is_file() else [folder]
        found += [place / "tokenizer.model" for place in places if (place / "tokenizer.model").is_file()][:1]
    if not found:
        raise CheckpointError(f"{folders[-1]}: tokenizer.model is missing; copy it there (500 KB, it comes with LLaMA)")
    lists = [[p.id_to_piece(i) for i in range(p.get_piece_size())] for p in map(_pieces, found)]
    if lists[0] != lists[-1]:
        raise CheckpointError(f"{found[0]} and {found[-1]} hold other tokens: the folders do not belong together")
    if faults := _not_llamas(_pieces(found[0])):
        raise CheckpointError(f"{found[0]}: not LLaMA's tokenizer: {faults[0]}")
    return found[0]


def piece_count(path: Path) -> int:
    """How many tokens a tokenizer.model has."""
    return _pieces(path).get_piece_size()


def _not_llamas(pieces: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Differences between a tokenizer of LLaMA's size and LLaMA's own; other sizes are not compared."""
    known = LLAMA_IDS if pieces.get_piece_size() == LLAMA_PIECES else {}
    read = {text: pieces.encode(text) for text in known}
    return [f"{text!r} is {read[text]}, in LLaMA's {ids}" for text, ids in known.items() if read[text] != ids]


def _pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        if path.read_bytes()[:23] == b"version https://git-lfs":
            raise CheckpointError(f"{path}: a git-lfs pointer; fetch the real file with `git lfs pull`") from None
        raise CheckpointError(f"{path}: not LLaMA's tokenizer (a sentencepiece model)") from None


def special_tokens(folder: Path) -> dict[str, str]:
    """bos, eos and unk of the folder's special_tokens_map.json; LLaMA's own where it names none.

    FastChat keeps the delta's tokens too. Early conversions of LLaMA wrote empty strings.
    """
    named: dict[str, Any] = {}
    if (folder / "special_tokens_map.json").is_file():
        try:
            named = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise CheckpointError(f"{folder}/special_tokens_map.json: not JSON: {error}") from None
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for key in tokens:
        token = named.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        tokens[key] = token or tokens[key]
    return tokens


def special_ids(model: Path, specials: dict[str, str], with_pad: bool) -> dict[str, int | None]:
    """Ids of bos, eos and pad; [PAD] comes after the last piece, as in Vicuna v0.

    Raises:
        CheckpointError: a special token is not in the vocabulary.
    """
    pieces = _pieces(model)
    ids: dict[str, int | None] = {"pad": pieces.get_piece_size() if with_pad else None}
    for key in ("bos", "eos"):
        token = specials[f"{key}_token"]
        ids[key] = pieces.piece_to_id(token)
        if pieces.id_to_piece(ids[key]) != token:
            raise CheckpointError(f"special_tokens_map.json: {key}_token {token!r} is not in {model}")
    return ids


def write_tokenizer(model: Path, out: Path, specials: dict[str, str], pad: int | None) -> None:
    """Write tokenizer.model and the files beside it. `pad` is the id of [PAD]; None without that token."""
    atomic_save(model.read_bytes(), out / "tokenizer.model", lambda data, path: Path(path).write_bytes(data))
    if pad is not None:
        specials = {**specials, "pad_token": PAD}
        write_json({PAD: pad}, out / "added_tokens.json")
    write_json(specials, out / "special_tokens_map.json")
    settings = {
        "tokenizer_class": "LlamaTokenizer", **specials, "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 2048, "padding_side": "right",
    }  # fmt: skip
    write_json(settings, out / "tokenizer_config.json")


def check_tokenizer(folder: Path, config: dict[str, Any]) -> tuple[str, list[str]]:
    """Load the folder's tokenizer as the model does and compare it with sentencepiece.

    Args:
        config: the folder's config.json.
    Returns:
        one line that describes the tokenizer, and a list of faults.
    """
    pieces = _pieces(folder / "tokenizer.model")
    size, vocab = pieces.get_piece_size(), config["vocab_size"]
    faults = []
    if vocab not in (size, size + 1):
        faults.append(f"tokenizer.model has {size:,} pieces, config.json a vocabulary of {vocab:,}")
    tokenizer = load_tokenizer(str(folder), PAD if vocab == size + 1 else None)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    stated = config["bos_token_id"], config["eos_token_id"]
    if (bos, eos) != stated:
        faults.append(f"BOS and EOS are {bos} and {eos}, in config.json {stated[0]} and {stated[1]}")
    if vocab == size + 1 and pad != size:
        faults.append(f"{PAD} is {pad}, not {size}")
    for text in PROBES:
        ids, expected = tokenizer(text).input_ids, [bos, *pieces.encode(text)]
        if ids != expected:
            faults.append(f"{text!r} is read as {ids}, by sentencepiece as {expected}")
    faults += _not_llamas(pieces)
    separator = tokenizer("###", add_special_tokens=False).input_ids
    of_pad = f", {PAD} = {pad}" if vocab == size + 1 else ""
    names = f"BOS {tokenizer.bos_token} = {bos}, EOS {tokenizer.eos_token} = {eos}{of_pad}"
    return f"{size:,} pieces, {names}, '###' = {separator}", faults
