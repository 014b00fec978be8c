"""The files in an LLM's folder: each fault by its name, with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..common.checkpoint import finite
from ..common.errors import CheckpointError, some
from ..common.identify import DOWNLOAD_AGAIN, NO_WEIGHTS, FileFacts, identify

# Weights in one file, and the index of several files; in transformers' order.
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json")
VICUNA = "make Vicuna v0 from LLaMA and its delta with `minigpt4 prepare-vicuna` (PrepareVicuna.md)"


def check_download(path: Path) -> None:
    """Raises CheckpointError for a git-lfs pointer, a web page or an empty file."""
    facts = identify(path)
    if facts.kind in ("lfs", "html", "empty", "missing"):
        raise CheckpointError(f"{path} is {facts.describe()}; {DOWNLOAD_AGAIN[facts.kind]}")


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; an empty one for an optional file that is missing. Raises CheckpointError."""
    if optional and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        check_download(path)
        data = None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return data


def check_not_quantized(folder: Path) -> None:
    """Raises CheckpointError for weights that another program has quantized."""
    config = read_json(folder / "config.json")
    found = [part["quantization_config"].get("quant_method") or "bitsandbytes" for part in (config, *config.values())
             if isinstance(part, dict) and part.get("quantization_config")]  # fmt: skip
    if found:
        raise CheckpointError(
            f"model.llama_model: {folder} holds weights quantized by {found[0]}, which are not supported; write the "
            "folder of the same LLM in 16 or 32 bit (with model.low_resource: 8bit or 4bit it is quantized here), or a "
            ".gguf file"
        )


def without_config(folder: Path) -> str:
    """What a path without config.json is instead, and what to write."""
    write = "write the folder that holds config.json and the weights of the LLM, or a .gguf file"
    if folder.is_file():
        return f"is {identify(folder).describe()}, and a folder is wanted; {write}"
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        return f"has no config.json: it is LLaMA in Meta's own form; {VICUNA}"
    return f"has no config.json; {write}"


def weight_files(folder: Path) -> list[FileFacts]:
    """The files that transformers reads the weights from. Raises CheckpointError when some are missing or damaged."""
    first = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise CheckpointError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}")
    names = [first]
    if first.endswith(".json"):
        names = sorted(set(read_json(folder / first).get("weight_map", {}).values()))
    files = [identify(folder / name) for name in names]
    if missing := [file.path.name for file in files if file.kind == "missing"]:
        count = f"{len(missing)} of the {len(files)} files that {first} names are"
        raise CheckpointError(f"{folder}: {count} missing: {some(missing)}; fetch them too")
    for file in files:
        if file.kind in NO_WEIGHTS:
            raise CheckpointError(f"{file.path} is {file.describe()}; {DOWNLOAD_AGAIN[file.kind]}")
    return files


@torch.no_grad()
def check_finite(llm: transformers.PreTrainedModel, logits: Tensor) -> None:
    """Raises CheckpointError when a weight is NaN or infinite, or when the dtype is too small for finite weights.

    NaN in any weight reaches the `logits` of any text, except through the embedding, which is checked by itself.
    """
    embedding = llm.get_input_embeddings().weight
    if not ((embedding.is_meta or finite(embedding)) and finite(logits)):
        raise CheckpointError(
            f"model.llama_model: {llm.name_or_path} computes NaN or infinity: its files are damaged (download them "
            f"again), or {llm.dtype} is too small for them (write another model.llama_precision: bf16 or fp32)"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Raises CheckpointError for what transformers would stop at, or read wrongly, without naming the file."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            check_download(folder / name)
    config, special = (folder / f"{stem}.json" for stem in ("tokenizer_config", "special_tokens_map"))
    tokens = read_json(special, optional=True)  # a token that stands in both files is taken from this one
    for file, settings in ((special, tokens), (config, read_json(config, optional=True))):
        named = {key: settings.get(key) for key in ("bos_token", "eos_token", "unk_token")}
        if file == config:
            named = {key: token for key, token in named.items() if key not in tokens}
        if blank := [k for k, t in named.items() if (t.get("content") if isinstance(t, dict) else t) == ""]:
            raise CheckpointError(f"{file}: {', '.join(blank)} empty, as in early conversions of LLaMA; "
                                  'write "<s>", "</s>" and "<unk>" there')  # fmt: skip
