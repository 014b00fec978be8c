"""What can be wrong with the folder of an LLM, each cause by its name; transformers says most of it in other words."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..common.checkpoint import finite
from ..common.errors import CheckpointError, some
from ..common.identify import DOWNLOAD_AGAIN, KINDS, NO_WEIGHTS, FileFacts, identify, is_safetensors

# Weights in one file, and the index of those that are not; what transformers takes first comes first.
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")
TOKENIZER_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
VICUNA = "make Vicuna v0 from LLaMA and its delta with `minigpt4 prepare-vicuna` (PrepareVicuna.md)"
OTHER_QUANTIZERS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # before config.json said it


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """({}, why) when it cannot be read; ({}, "") when it is not there."""
    if not path.is_file():
        return {}, ""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        return (data, "") if isinstance(data, dict) else ({}, "is no JSON object")
    except (OSError, ValueError):
        facts = identify(path)
        return {}, f"is {KINDS[facts.kind]}" if facts.kind in ("lfs", "html", "empty") else "is not JSON"


# -- weights --------------------------------------------------------------------------------------------------------


def quantized_by(folder: Path) -> str:
    """The method that quantized the folder's weights (gptq, awq, bitsandbytes, ...), empty for none."""
    config, _ = read_json(folder / "config.json")
    for part in (config, *config.values()):  # a multimodal one says it in its text_config
        if isinstance(part, dict) and (quantization := part.get("quantization_config")):
            return str(quantization.get("quant_method") or "bitsandbytes")
    return next((how for name, how in OTHER_QUANTIZERS.items() if (folder / name).is_file()), "")


def check_not_quantized(folder: Path) -> None:
    """Raises CheckpointError for weights that another program has quantized."""
    if how := quantized_by(folder):
        raise CheckpointError(
            f"model.llama_model: {folder} holds weights quantized by {how}, which are not supported; write the folder "
            "of the same LLM in 16 or 32 bit (with model.low_resource: 8bit or 4bit it is quantized here), or a .gguf "
            "file"
        )


def no_weights(folder: Path) -> str:
    """What a folder without WEIGHT_FILES has instead."""
    shards = sorted(f.name for kind in ("safetensors", "bin") for f in folder.glob(f"*-of-*.{kind}"))
    if not shards:
        return f"has no weights: none of {', '.join(WEIGHT_FILES)}"
    index = WEIGHT_FILES[1 if shards[0].endswith("safetensors") else 3]
    count = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
    return f"has {count}, but no index; fetch {index} too"


def without_config(folder: Path) -> str:
    """What a path without config.json is instead, and what to write."""
    write = "write the folder that holds config.json and the weights of the LLM, or a .gguf file"
    if folder.is_file():
        facts = identify(folder)
        write = f"write the folder it lies in: {folder.parent}" if facts.kind == "llm" else write
        return f"is {facts.describe()}, and a folder is wanted; {DOWNLOAD_AGAIN.get(facts.kind, write)}"
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        return f"has no config.json: it is LLaMA in Meta's own form; {VICUNA}"
    below = sorted(file.parent for file in folder.glob("*/config.json"))
    for file, what in (("adapter_config.json", "a LoRA adapter"), ("*.gguf", "a folder of GGUF files")):
        if any(folder.glob(file)):
            return f"has no config.json: it is {what}; {write}"
    return f"has no config.json; {f'write {below[0]}' if below else write}"


def weight_files(folder: Path) -> list[FileFacts]:
    """The files that transformers reads the weights from.

    Raises:
        CheckpointError: some are missing, or are no weight files.
    """
    first = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise CheckpointError(f"model.llama_model: {folder} {no_weights(folder)}")
    names = [first]
    if first.endswith(".json"):
        try:
            names = sorted(set(json.loads((folder / first).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"model.llama_model: {folder / first} is damaged; download it again") from None
    files = [identify(folder / name) for name in names]
    if missing := [file.path.name for file in files if file.kind == "missing"]:
        count = f"{len(missing)} of the {len(files)} files that {first} names are"
        raise CheckpointError(f"model.llama_model: {folder}: {count} missing: {some(missing)}; fetch them too")
    if broken := [file for file in files if file.kind in NO_WEIGHTS]:
        count = f"; {len(broken)} of {len(files)} weight files cannot be used" if len(broken) > 1 else ""
        again = DOWNLOAD_AGAIN[broken[0].kind]
        raise CheckpointError(f"model.llama_model: {broken[0].path} is {broken[0].describe()}{count}; {again}")
    for file in files:
        if is_safetensors(file.path) != (file.path.suffix == ".safetensors"):
            kind = "no safetensors file" if file.path.suffix == ".safetensors" else "a safetensors file"
            raise CheckpointError(f"model.llama_model: {file.path} is {kind}, whatever its name says; rename it")
    return files


@torch.no_grad()
def check_finite(llm: PreTrainedModel, logits: Tensor) -> None:
    """NaN or infinity in a weight reaches the `logits` of any text; but of the embedding only the rows of its tokens.

    Raises:
        CheckpointError: names the tensor and its file, or says that the dtype is too small for sound weights.
    """
    embedding = llm.get_input_embeddings().weight
    if (embedding.is_meta or finite(embedding)) and finite(logits):
        return
    folder = Path(llm.name_or_path)
    if any((folder / name).is_file() for name in WEIGHT_FILES):  # not so of a GGUF file
        for facts in weight_files(folder):
            bad = [name for name in facts.tensors if not finite(facts.value(name))]
            if bad:
                raise CheckpointError(f"model.llama_model: {facts.path} is damaged: NaN or infinity in {some(bad)}; "
                                      "download it again")  # fmt: skip
    raise CheckpointError(
        f"model.llama_model: {folder} computes NaN or infinity in {str(llm.dtype).removeprefix('torch.')}, though its "
        "weights are finite; write another model.llama_precision (bf16 or fp32)"
    )


# -- tokenizer ------------------------------------------------------------------------------------------------------


def tokenizer_faults(folder: Path) -> list[tuple[str, str]]:
    """(what is wrong, what to do) of the tokenizer's files."""
    fetch = "fetch the tokenizer's files from where the weights came"
    found = []
    for name in TOKENIZER_FILES:
        if (folder / name).is_file() and (facts := identify(folder / name)).kind in ("lfs", "html", "empty"):
            found.append((f"{folder / name} is {KINDS[facts.kind]}", fetch))
    read = {name: read_json(folder / name) for name in TOKENIZER_JSON}
    found += [(f"{folder / name} {problem}", fetch) for name, (_, problem) in read.items() if problem]
    config, special = (read[name][0] for name in TOKENIZER_JSON[:2])  # what stands in both is taken from the second
    config = {key: token for key, token in config.items() if key not in special}
    for name, settings in zip(TOKENIZER_JSON, (config, special), strict=False):
        named = {key: settings.get(key) for key in ("bos_token", "eos_token", "unk_token")}
        if blank := [key for key, t in named.items() if (t.get("content") if isinstance(t, dict) else t) == ""]:
            found.append((f"{folder / name}: {', '.join(blank)} empty, as in early conversions of LLaMA",
                          'write "<s>", "</s>" and "<unk>" there'))  # fmt: skip
    return found


def check_tokenizer_files(folder: Path) -> None:
    """Raises CheckpointError for what transformers would stop at, or read wrongly, without naming the file."""
    if faults := tokenizer_faults(folder):
        raise CheckpointError("model.llama_model: " + "; ".join(f"{text}; {do}" for text, do in faults))
