"""`minigpt4 prepare-vicuna`: add Vicuna's delta to LLaMA and write the folder for `model.llama_model`.

LLaMA may be in Meta's or transformers' format. Every weight of the result is fp16(LLaMA) + fp16(delta), added in fp16,
bit for bit what FastChat's apply_delta writes. One file of the result is in memory at a time. All inputs are checked
before the first byte is written. The folder appears when it is complete.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from ...common.checkpoint import atomic_save, finite
from ...common.errors import CheckpointError, UserError, some
from ...common.identify import gigabytes
from ...common.paths import sha256
from ...common.precision import DTYPES
from ...models.llm_checks import read_json
from ..folders import whole_folder, write_json
from .llama_meta import STRUCTURE, Llama, TransformersLlama, config_json, describe, open_llama, weights_of
from .tokenizer import check_tokenizer, find_tokenizer, read_pieces, special_tokens, write_tokenizer

SHARD = "2GB"
INDEX = "model.safetensors.index.json"
RECORD = "prepare_vicuna.json"  # the kind of model, and the checksums of its weight files
SPARE_BYTES = 20_000_000  # tokenizer, records, and the file system's own needs
DELTA_NORM = 0.1  # the final norm's weights average 1 and more in a LLaMA, under 0.01 in a delta


@dataclass(frozen=True)
class Job:
    """The checked inputs, and the tensors of the result."""

    base: Llama
    delta: TransformersLlama | None
    tokenizer: Path
    specials: dict[str, str]  # bos_token, eos_token, unk_token
    ids: dict[str, int | None]  # bos, eos, pad
    kind: str  # 'Vicuna v0', 'Vicuna v1.1 or later', 'LLaMA'
    sizes: LlamaConfig
    dtype: torch.dtype
    plan: dict[str, list[str]]  # file name -> names of its tensors
    bytes: int

    def tensor(self, name: str) -> Tensor:
        """A tensor of the result, by its name. Raises CheckpointError when it holds NaN or infinity."""
        total = base = self.base.read(name).to(self.dtype)
        if self.delta is not None:
            total = self.delta.read(name).to(torch.float16, copy=True)
            total[: len(base)] += base
            total[len(base) :] += 0  # LLaMA has no [PAD] row; adding 0 turns -0 into 0, as FastChat does
        if not finite(total):
            raise CheckpointError(f"{name} holds NaN or infinity: one of its input files is damaged")
        return total.contiguous()


def open_job(base: Path, delta: Path | None, max_shard: int | str = SHARD, dtype: torch.dtype = torch.float16) -> Job:
    """Open both folders. Raises CheckpointError: a file is missing or damaged, or the two do not make a Vicuna."""
    first = open_llama(base)
    second = open_llama(delta) if delta else None
    if _norm(first) < DELTA_NORM:
        raise CheckpointError(f"--base {base}: a delta, not LLaMA (its norms are near 0); swap --base and --delta?")
    model = find_tokenizer([delta, base] if delta else [base])
    pieces = read_pieces(model)
    if second is not None:
        if dtype != torch.float16:
            raise UserError("--dtype: Vicuna's deltas are fp16, and so is what they make; leave it out")
        _check_pair(first, second, len(pieces))
    sizes = (second or first).sizes
    if sizes.vocab_size not in (len(pieces), len(pieces) + 1):
        wanted = f"{len(pieces):,} tokens; with [PAD] (Vicuna v0) there is one row more"
        raise CheckpointError(f"{delta or base}: {sizes.vocab_size:,} rows of vocabulary, but {model} has {wanted}")
    pad = len(pieces) if sizes.vocab_size > len(pieces) else None
    kind = "LLaMA" if second is None else "Vicuna v1.1 or later" if pad is None else "Vicuna v0"
    specials = special_tokens(delta or base, pieces)
    ids = {key: pieces.piece_to_id(specials[f"{key}_token"]) for key in ("bos", "eos")} | {"pad": pad}
    weights = weights_of(sizes, dtype)
    try:
        plan = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard).filename_to_tensors
    except ValueError:
        raise UserError(f"--max-shard-size: {max_shard!r} is not a size; write e.g. 5GB or 500MB") from None
    size = sum(weight.nbytes for weight in weights.values())
    return Job(first, second, model, specials, ids, kind, sizes, dtype, plan, size)


def _norm(llama: Llama) -> float:
    """The mean size of the final norm's weights."""
    return llama.read("model.norm.weight").float().abs().mean().item()


def _check_pair(base: Llama, delta: Llama, pieces: int) -> None:
    """Raises CheckpointError unless `base` is LLaMA itself and `delta` was made from it."""
    if not isinstance(delta, TransformersLlama):
        raise CheckpointError(f"--delta {delta.folder}: Meta's LLaMA, not a delta; swap --base and --delta")
    if _norm(delta) >= DELTA_NORM:
        raise CheckpointError(
            f"--delta {delta.folder}: a whole model, not a delta: its final norm averages {_norm(delta):.2f}, "
            "not 0; if it is Vicuna v0, write its folder as model.llama_model, and nothing is to be done"
        )
    named = "vicuna" in str(getattr(base, "config", {}).get("_name_or_path", "")).lower()
    made = read_json(base.folder / RECORD, optional=True).get("kind", "LLaMA")
    if named or made != "LLaMA" or base.sizes.vocab_size != pieces:
        rows = f"{base.sizes.vocab_size:,} rows of vocabulary, LLaMA's tokenizer {pieces:,}"
        raise CheckpointError(f"--base {base.folder}: Vicuna already ({rows}); --base must be LLaMA as it came")
    # Meta's params.json does not say how many positions there are
    stated = ("max_position_embeddings",) * isinstance(base, TransformersLlama)
    differ = [
        f"{key} {getattr(base.sizes, key)} (the delta's is {getattr(delta.sizes, key)})"
        for key in (*STRUCTURE, "rms_norm_eps", "rope_parameters", *stated)
        if getattr(base.sizes, key) != getattr(delta.sizes, key)
    ]
    if differ:
        raise CheckpointError(
            f"--delta {delta.folder} ({describe(delta.sizes)})\ndoes not belong to\n"
            f"--base {base.folder} ({describe(base.sizes)})\nthe base has {', '.join(differ)}. Both must be of one "
            "size; Llama 2 has the same shapes, but Vicuna's deltas belong to the first LLaMA (February 2023)"
        )


def prepare(job: Job, out: Path) -> None:
    """Make the folder, whole or not at all. Raises UserError: the disk is too small; CheckpointError: `out` exists, an
    input is damaged, or the disk fills up."""
    write = partial(save_file, metadata={"format": "pt"})  # older versions of transformers need it
    with whole_folder(out) as folder:
        need, free = job.bytes + SPARE_BYTES, shutil.disk_usage(folder).free
        if need > free:
            raise UserError(
                f"--out: {gigabytes(need)} are to be written, the disk has {gigabytes(free)} free; "
                f"free {gigabytes(need - free)}, or choose a folder on another disk"
            )
        digests = {}
        for name, tensors in job.plan.items():
            atomic_save({tensor: job.tensor(tensor) for tensor in tensors}, folder / name, write)
            digests[name] = sha256(folder / name)
            print(f"{name}: {gigabytes((folder / name).stat().st_size)}", flush=True)
        write_json({"made_by": "minigpt4 prepare-vicuna", "kind": job.kind, "files": digests}, folder / RECORD)
        tokens = {f"{key}_token_id": number for key, number in job.ids.items()}
        write_tokenizer(job.tokenizer, folder, job.specials, job.ids["pad"])
        weight_map = {tensor: name for name, tensors in job.plan.items() for tensor in tensors}
        write_json({"metadata": {"total_size": job.bytes}, "weight_map": weight_map}, folder / INDEX)
        write_json({"_from_model_config": True, **tokens}, folder / "generation_config.json")
        write_json(config_json(job.sizes, job.dtype) | tokens, folder / "config.json")


def verify(folder: Path) -> int:
    """Print the results of all checks of a folder that `prepare` made; return 0 when all passed, else 1.
    Raises CheckpointError: not made by prepare-vicuna, a file is missing, or unreadable."""
    record = read_json(folder / RECORD, optional=True)
    if not record:
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="LLaMA, in Meta's or transformers' format")
    parser.add_argument("--delta", type=Path, metavar="FOLDER", help="Vicuna's delta (without it, LLaMA is converted)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the folder to make")
    parser.add_argument(
        "--max-shard-size", default=SHARD, help="largest file; twice as much memory is needed (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16", help="only without --delta (default: fp16)")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="only check a folder that was made before")


def run(args: argparse.Namespace) -> int:
    """Make the folder and verify it, or verify only."""
    if args.verify:
        if args.base or args.delta or args.out:
            raise UserError("--verify FOLDER stands alone; leave out --base, --delta and --out")
        return verify(args.verify)
    if not (args.base and args.out):
        raise UserError("write --base LLAMA_FOLDER --delta DELTA_FOLDER --out FOLDER, or --verify FOLDER")
    job = open_job(args.base, args.delta, args.max_shard_size, DTYPES[args.dtype])
    print(f"{job.kind} from {job.base.folder}" + (f" + {job.delta.folder}" if job.delta else ""))
    print(f"{describe(job.sizes)}; {gigabytes(job.bytes)} in {len(job.plan)} files -> {args.out}", flush=True)
    if job.kind != "Vicuna v0":
        print(f"NOTE: {job.kind} is not the Vicuna v0 that MiniGPT-4's published checkpoints and prompts were made for")
    prepare(job, args.out)
    return verify(args.out)
