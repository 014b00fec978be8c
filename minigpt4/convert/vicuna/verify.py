"""Check a folder that prepare-vicuna made: shapes, checksums of the files, tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ...common.errors import CheckpointError, some
from ...common.paths import sha256
from ...models.llm_checks import read_json
from .llama_meta import TransformersLlama, describe, weights_of
from .tokenizer import check_tokenizer

INDEX = "model.safetensors.index.json"
RECORD = "prepare_vicuna.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of prepare_vicuna.json: the inputs and the files' checksums; None when there is no such file."""
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else None


def verify(folder: Path) -> int:
    """Print the results of all checks; return 0 when all passed, else 1.

    Raises:
        CheckpointError: not made by prepare-vicuna, a file is missing, or unreadable.
    """
    record = read_record(folder)
    if record is None:
        raise CheckpointError(f"{folder}: has no {RECORD}: it was not made by prepare-vicuna")
    lost = [name for name in (*record["files"], "config.json") if not (folder / name).is_file()]
    if lost:
        raise CheckpointError(f"{folder}: {some(lost)} is missing; make the folder anew")
    llama = TransformersLlama(folder)
    print(f"\n{folder}: {record['kind']}\n  {describe(llama.sizes)}")
    print(f"  shapes      {len(weights_of(llama.sizes))} tensors, each as a LLaMA of these sizes has it", flush=True)
    files = record["files"]
    damaged = [name for name, known in files.items() if sha256(folder / name) != known]
    whole = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:16]
    print(f"  checksums   {len(files) - len(damaged)} of {len(files)} files right; all together {whole}", flush=True)
    line, faults = check_tokenizer(folder, llama.config)
    print(f"  tokenizer   {line}")
    faults = [f"tokenizer: {fault}" for fault in faults]
    if damaged:
        faults.append(f"{some(damaged)}: not what was written; make the folder anew")
    for fault in faults:
        print(f"  WRONG: {fault}")
    print("  FAILED" if faults else "  all checks passed")
    return 1 if faults else 0
