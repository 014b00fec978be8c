"""Find the tokenizer of a LLaMA or Vicuna folder, write it as Vicuna's publishers did, and check it."""

import shutil
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from ...common.errors import CheckpointError
from ...common.identify import DOWNLOAD_AGAIN, identify
from ...models.llm import load_tokenizer
from ...models.llm_checks import read_json
from ..folders import write_json

PAD = "[PAD]"  # the token that Vicuna v0 has and LLaMA has not
LLAMA_PIECES = 32000
# The ids of the turn separator in LLaMA's tokenizer, alone and after a line break: MiniGPT-4 stops at these.
LLAMA_IDS = {"###": [835], "a\n###": [263, 13, 2277, 29937]}
PROBES = ("###", " ###Human: Hello, world ###Assistant: ", "a\n###", "  two spaces", "naïve 狗 \t")


def find_tokenizer(folders: list[Path]) -> Path:
    """The tokenizer.model of the first folder that has one; Meta's is one folder up.
    Raises CheckpointError: there is none, the folders' tokenizers differ, or it is not LLaMA's."""
    found = []
    for folder in folders:
        places = [folder, folder.parent] if (folder / "params.json").is_file() else [folder]
        found += [place / "tokenizer.model" for place in places if (place / "tokenizer.model").is_file()][:1]
    if not found:
        raise CheckpointError(f"{folders[-1]}: tokenizer.model is missing; copy it there (500 KB, it comes with LLaMA)")
    first, last = read_pieces(found[0]), read_pieces(found[-1])
    if first.id_to_piece(list(range(len(first)))) != last.id_to_piece(list(range(len(last)))):
        raise CheckpointError(f"{found[0]} and {found[-1]} hold other tokens: the folders do not belong together")
    if faults := _not_llamas(first):
        raise CheckpointError(f"{found[0]}: not LLaMA's tokenizer: {faults[0]}")
    return found[0]


def read_pieces(path: Path) -> SentencePieceProcessor:
    """A tokenizer.model; its `len` is the number of tokens."""
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        facts = identify(path)
        raise CheckpointError(
            f"{path}: not LLaMA's tokenizer (a sentencepiece model), but {facts.describe()}; "
            f"{DOWNLOAD_AGAIN.get(facts.kind, 'copy the one that comes with LLaMA')}"
        ) from None


def _not_llamas(pieces: SentencePieceProcessor) -> list[str]:
    """Differences between a tokenizer of LLaMA's size and LLaMA's own; other sizes are not compared."""
    known = LLAMA_IDS if len(pieces) == LLAMA_PIECES else {}
    read = {text: pieces.encode(text) for text in known}
    return [f"{text!r} is {read[text]}, in LLaMA's {ids}" for text, ids in known.items() if read[text] != ids]


def special_tokens(folder: Path, pieces: SentencePieceProcessor) -> dict[str, str]:
    """bos, eos and unk of the folder's special_tokens_map.json; LLaMA's own where it names none.

    FastChat keeps the delta's tokens too. Early conversions of LLaMA wrote empty strings.
    Raises CheckpointError: a special token is not in the vocabulary."""
    file = folder / "special_tokens_map.json"
    named = read_json(file, optional=True)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for key in tokens:
        token = named.get(key)
        tokens[key] = (token.get("content") if isinstance(token, dict) else token) or tokens[key]
        if pieces.id_to_piece(pieces.piece_to_id(tokens[key])) != tokens[key]:
            raise CheckpointError(f"{file}: {key} {tokens[key]!r} is not in the vocabulary of tokenizer.model")
    return tokens


def write_tokenizer(model: Path, out: Path, specials: dict[str, str], pad: int | None) -> None:
    """Write tokenizer.model and the files beside it. `pad` is the id of [PAD]; None without that token."""
    shutil.copy(model, out / "tokenizer.model")
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
    """Load the folder's tokenizer as the model does and compare it with sentencepiece and with config.json -> one line
    that describes the tokenizer, and a list of faults."""
    pieces = read_pieces(folder / "tokenizer.model")
    has_pad = config["vocab_size"] == len(pieces) + 1
    faults = _not_llamas(pieces)
    if not has_pad and config["vocab_size"] != len(pieces):
        faults.append(
            f"tokenizer.model has {len(pieces):,} pieces, config.json a vocabulary of {config['vocab_size']:,}"
        )
    tokenizer = load_tokenizer(str(folder), PAD if has_pad else None)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if (bos, eos) != (config["bos_token_id"], config["eos_token_id"]):
        stated = f"{config['bos_token_id']} and {config['eos_token_id']}"
        faults.append(f"BOS and EOS are {bos} and {eos}, in config.json {stated}")
    if has_pad and pad != len(pieces):
        faults.append(f"{PAD} is {pad}, not {len(pieces)}")
    for text in PROBES:
        ids, expected = tokenizer(text).input_ids, [bos, *pieces.encode(text)]
        if ids != expected:
            faults.append(f"{text!r} is read as {ids}, by sentencepiece as {expected}")
    separator = tokenizer("###", add_special_tokens=False).input_ids
    names = f"BOS {tokenizer.bos_token} = {bos}, EOS {tokenizer.eos_token} = {eos}" + f", {PAD} = {pad}" * has_pad
    return f"{len(pieces):,} pieces, {names}, '###' = {separator}", faults
