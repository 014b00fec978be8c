"""Check a folder that prepare-vicuna made: shapes, checksums of the files, tokenizer, and whether it knows English."""

import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...common.errors import CheckpointError, some
from ...common.logger import quiet_transformers
from ...models.llm import load_tokenizer
from ...models.llm_checks import read_json
from .llama_meta import TransformersLlama, describe, is_published, weights_of
from .tokenizer import check_tokenizer

INDEX = "model.safetensors.index.json"
RECORD = "prepare_vicuna.json"
ENGLISH = "The sun rises in the east and sets in the west. Water is made of hydrogen and oxygen."
PROMPTS = {  # in the form that each was trained on; LLaMA only continues text
    "LLaMA": "The capital of France is",
    "Vicuna v0": "###Human: What is the capital of France?###Assistant:",
    "Vicuna v1.1 or later": "USER: What is the capital of France? ASSISTANT:",
}
NEW_TOKENS = 8


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of prepare_vicuna.json: the inputs and the files' checksums; None when there is no such file."""
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else None


def digest(path: Path) -> str:
    """The SHA-256 of a file; empty when it is not there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> int:
    """Print the results of all checks; return 0 when all passed, else 1.

    Raises:
        CheckpointError: not made by prepare-vicuna, not finished, or unreadable.
    """
    record = read_record(folder)
    if record is None:
        raise CheckpointError(f"{folder}: has no {RECORD}: it was not made by prepare-vicuna")
    lost = [name for name in (*record["files"], "config.json") if not (folder / name).is_file()]
    if lost:
        raise CheckpointError(
            f"{folder}: is not finished: {some(lost)} is missing; run the command that made it again: it goes on"
        )
    llama = TransformersLlama(folder)
    print(f"\n{folder}: {record['kind']}\n  {describe(llama.sizes)}")
    print(f"  shapes      {len(weights_of(llama.sizes))} tensors, each as a LLaMA of these sizes has it", flush=True)
    files = record["files"]
    damaged = [name for name, known in files.items() if digest(folder / name) != known]
    whole = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:16]
    print(f"  checksums   {len(files) - len(damaged)} of {len(files)} files right; all together {whole}", flush=True)
    line, faults = check_tokenizer(folder, llama.config)
    print(f"  tokenizer   {line}")
    faults = [f"tokenizer: {fault}" for fault in faults]
    if damaged:
        faults.append(f"{some(damaged)}: not what was written; run the command that made it again")
    if not faults:
        print("  reading the weights once per token, from the disk: this can take minutes", flush=True)
        loss, answer = speak(folder, PROMPTS[record["kind"]])
        chance = math.log(llama.sizes.vocab_size)
        print(f"  English     {loss:.2f} nats a token (chance is {chance:.2f}; a LLaMA that is right: under 4)")
        print(f"  greedy      {PROMPTS[record['kind']]!r} -> {answer!r}")
        if is_published(llama.sizes) and loss > chance / 2:
            faults.append("it does not know English: LLaMA and the delta fit by their shapes only; get both again")
    for fault in faults:
        print(f"  WRONG: {fault}")
    print("  FAILED" if faults else "  all checks passed")
    return 1 if faults else 0


@torch.no_grad()
def speak(folder: Path, prompt: str) -> tuple[float, str]:
    """Run the LLM on the CPU with one layer in memory at a time.

    Returns:
        mean loss on a plain English sentence, in nats a token, and a greedy continuation of `prompt`.
    """
    tokenizer = load_tokenizer(str(folder))
    with tempfile.TemporaryDirectory() as unused, quiet_transformers():
        llm = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map={"": "disk"}, offload_folder=unused, local_files_only=True
        )
        ids = torch.tensor([tokenizer(ENGLISH).input_ids])
        loss = llm(input_ids=ids, labels=ids).loss.item()
        ids = torch.tensor([tokenizer(prompt).input_ids])
        new = llm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    return loss, tokenizer.decode(new[0, ids.shape[1] :])
