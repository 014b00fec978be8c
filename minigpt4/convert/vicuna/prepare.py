"""`minigpt4 prepare-vicuna`: add Vicuna's delta to LLaMA and write the folder for `model.llama_model`.

LLaMA may be in Meta's or transformers' format. Every weight of the result is fp16(LLaMA) + fp16(delta), added in fp16,
bit for bit what FastChat's apply_delta writes. One tensor is in memory at a time. All inputs are checked before the
first byte is written. config.json is written last, so no program loads an incomplete folder. After a stop, the same
command continues and keeps the complete files.
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from ...common.errors import CheckpointError, UserError
from ...common.file_system import alone_in
from ...common.identify import gigabytes
from ...common.precision import DTYPES
from ..sharded import DiskFullError, damaged_tensors, parse_size, write_json, write_shard
from .llama_meta import Llama, TransformersLlama, open_llama
from .tokenizer import find_tokenizer, piece_count, special_ids, special_tokens, write_tokenizer
from .verify import INDEX, RECORD, read_record, verify

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
    dtype: torch.dtype
    max_shard: int

    @property
    def sizes(self):
        return (self.delta or self.base).sizes

    @property
    def plan(self) -> dict[str, list[str]]:
        """File name -> names of its tensors."""
        shapes = self.sizes.shapes().items()
        tensors = {name: torch.empty(shape, dtype=self.dtype, device="meta") for name, shape in shapes}
        return split_torch_state_dict_into_shards(tensors, max_shard_size=self.max_shard).filename_to_tensors

    def tensor(self, name: str) -> Tensor:
        """A tensor of the result, by its name."""
        if self.delta is None:
            return self.base.read(name).to(self.dtype)
        base = self.base.read(name).to(torch.float16)
        total = self.delta.read(name).to(torch.float16, copy=True)
        total[: len(base)] += base
        total[len(base) :] += 0  # LLaMA has no [PAD] row; adding 0 turns -0 into 0, as FastChat does
        return total

    def record(self) -> dict[str, Any]:
        """The facts that must be the same for this job to continue in an incomplete folder."""
        inputs = {
            role: [[str(f.path.resolve()), f.path.stat().st_size, f.path.stat().st_mtime_ns] for f in llama.files]
            for role, llama in (("base", self.base), ("delta", self.delta))
            if llama is not None
        }
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return {
            "made_by": "minigpt4 prepare-vicuna", "kind": self.kind, "dtype": dtype,
            "max_shard_bytes": self.max_shard, "inputs": inputs,
        }  # fmt: skip


def open_job(base: Path, delta: Path | None, max_shard: int = 5 * 10**9, dtype: torch.dtype = torch.float16) -> Job:
    """Open both folders and check that they belong together.

    Raises:
        CheckpointError: a file is missing or damaged, or the two folders do not make a Vicuna.
    """
    first = open_llama(base)
    second = open_llama(delta) if delta else None
    # a small model, made for a test, is checked only for swapped folders
    known = first.sizes.published or (second is not None and _is_whole(second))
    if known and _norm(first).abs().mean() < DELTA_NORM:
        raise CheckpointError(f"--base {base}: a delta, not LLaMA (its norms are near 0); swap --base and --delta?")
    tokenizer = find_tokenizer([delta, base] if delta else [base])
    pieces = piece_count(tokenizer)
    if second is None:
        kind, vocab = "LLaMA", first.sizes.vocab_size
        if vocab not in (pieces, pieces + 1):
            raise CheckpointError(f"--base {base}: {vocab:,} rows of vocabulary, but {tokenizer} has {pieces:,} tokens")
    else:
        if dtype != torch.float16:
            raise UserError("--dtype: Vicuna's deltas are fp16, and so is what they make; leave it out")
        if not isinstance(second, TransformersLlama):
            raise CheckpointError(f"--delta {delta}: Meta's LLaMA, not a delta; swap --base and --delta")
        _check_is_delta(second)
        _check_is_llama(first, pieces)
        _check_pair(first, second, pieces)
        vocab = second.sizes.vocab_size
        kind = "Vicuna v0" if vocab == pieces + 1 else "Vicuna v1.1 or later"
    specials = special_tokens(delta or base)
    ids = special_ids(tokenizer, specials, with_pad=vocab == pieces + 1)
    return Job(first, second, tokenizer, specials, ids, kind, dtype, max_shard)


def _norm(llama: Llama) -> Tensor:
    return llama.read("model.norm.weight").float()


def _is_whole(llama: Llama) -> bool:
    """Whether this is a model, not a delta: its final norm is positive and far from 0, a delta's is near 0."""
    return float((_norm(llama) > 0).float().mean()) > 0.9 and float(_norm(llama).mean()) >= DELTA_NORM


def _check_is_llama(base: Llama, pieces: int) -> None:
    made = read_record(base.folder)
    if made and made["kind"] != "LLaMA":
        raise CheckpointError(f"--base {base.folder}: is {made['kind']} already; --base must be LLaMA itself")
    if "vicuna" in str(getattr(base, "config", {}).get("_name_or_path", "")).lower():
        raise CheckpointError(f"--base {base.folder}: its config.json says it is Vicuna; --base must be LLaMA itself")
    if base.sizes.vocab_size != pieces:
        raise CheckpointError(
            f"--base {base.folder}: has {base.sizes.vocab_size:,} rows of vocabulary, LLaMA's tokenizer {pieces:,}: "
            "Vicuna v0, or a LLaMA that was grown by a [PAD] row; --base must be LLaMA itself"
        )


def _check_is_delta(delta: TransformersLlama) -> None:
    if _is_whole(delta):
        raise CheckpointError(
            f"--delta {delta.folder}: a whole model, not a delta: its final norm averages {_norm(delta).mean():.2f}, "
            "not 0; if it is Vicuna v0, write its folder as model.llama_model, and nothing is to be done"
        )


def _check_pair(base: Llama, delta: TransformersLlama, pieces: int) -> None:
    one, other = base.sizes, delta.sizes
    both = f"--delta {delta.folder} ({other})\ndoes not belong to\n--base {base.folder} ({one})"
    structure = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    if any(getattr(one, key) != getattr(other, key) for key in structure):
        raise CheckpointError(f"{both}\nboth must be of one size")
    if other.vocab_size not in (pieces, pieces + 1):
        raise CheckpointError(
            f"{both}\nthe delta's vocabulary must be {pieces + 1:,} (v0, with [PAD]) or {pieces:,} (v1.1 and later)"
        )
    # Meta's params.json does not say how many positions there are
    stated = ("rms_norm_eps", "rope_theta", *(("max_position_embeddings",) * isinstance(base, TransformersLlama)))
    llama2 = [
        f"{key} {getattr(one, key)} (the delta's is {getattr(other, key)})"
        for key in stated
        if getattr(one, key) != getattr(other, key)
    ]
    if llama2:
        raise CheckpointError(
            f"{both}\nthe base has {', '.join(llama2)}: not the LLaMA the delta was made from. "
            "Llama 2 has the same shapes, but Vicuna's deltas belong to the first LLaMA (February 2023)"
        )


def prepare(job: Job, out: Path) -> None:
    """Make the folder; continue an incomplete one; repair damaged files.

    Raises:
        UserError: `out` was made by something else, another process writes into it, the disk is too small.
        CheckpointError: an input is damaged.
    """
    record = _begin(job, out)
    plan, shapes = job.plan, job.sizes.shapes()
    _check_disk(job, out, set(record["files"]))
    try:
        with alone_in(out, "prepare-vicuna"):
            for name in [n for n in record["files"] if damaged_tensors(out / n, record["files"][n])]:
                print(f"{name}: damaged; it is made again")
                del record["files"][name]
            if record["files"]:
                print(f"going on: {len(record['files'])} of {len(plan)} files are whole")
            if len(record["files"]) < len(plan):
                (out / "config.json").unlink(missing_ok=True)
            write_json(record, out / RECORD)  # first: it marks the folder as made by this command
            for name, tensors in plan.items():
                if name not in record["files"]:
                    started = time.monotonic()
                    record["files"][name] = write_shard(
                        out / name, {t: shapes[t] for t in tensors}, job.dtype, job.tensor
                    )
                    write_json(record, out / RECORD)
                    size = gigabytes((out / name).stat().st_size)
                    print(f"{name}: {size}, {time.monotonic() - started:.0f} s", flush=True)
            _finish(job, out)
    except DiskFullError as error:
        done = sum((out / name).stat().st_size for name in record["files"])
        left = gigabytes(_result_bytes(job) - done + SPARE_BYTES)
        raise DiskFullError(
            f"{error}: {len(record['files'])} of {len(plan)} files are written. Free {left} there and run the same "
            "command again: it goes on"
        ) from error


def _begin(job: Job, out: Path) -> dict[str, Any]:
    """The record of `out`, with the files that are complete so far."""
    fresh = {**job.record(), "files": {}}
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return fresh
    if (record := read_record(out)) is None:
        raise UserError(f"--out {out}: is not empty, and not made by prepare-vicuna; choose another folder")
    other = [key for key in job.record() if record.get(key) != fresh[key]]
    if other:
        raise UserError(
            f"--out {out}: was begun with other {', '.join(other)}; run the command it was begun with, "
            "or choose another folder, or delete this one"
        )
    record["files"] = {name: sums for name, sums in record["files"].items() if (out / name).is_file()}
    return record


def _result_bytes(job: Job) -> int:
    return sum(torch.Size(shape).numel() for shape in job.sizes.shapes().values()) * job.dtype.itemsize


def _check_disk(job: Job, out: Path, done: set[str]) -> None:
    here = out.resolve()
    while not here.exists():
        here = here.parent
    need = _result_bytes(job) - sum((out / name).stat().st_size for name in done) + SPARE_BYTES
    free = shutil.disk_usage(here).free
    if need > free:
        raise UserError(
            f"--out {out}: {gigabytes(need)} are still to be written, the disk has {gigabytes(free)} free; "
            f"free {gigabytes(need - free)}, or choose a folder on another disk"
        )


def _finish(job: Job, out: Path) -> None:
    """Write everything but the weights, config.json last."""
    ids = job.ids
    write_tokenizer(job.tokenizer, out, job.specials, ids["pad"])
    weight_map = {tensor: name for name, tensors in job.plan.items() for tensor in tensors}
    write_json({"metadata": {"total_size": _result_bytes(job)}, "weight_map": weight_map}, out / INDEX)
    generation = {"_from_model_config": True, "bos_token_id": ids["bos"], "eos_token_id": ids["eos"]}
    write_json({**generation, "pad_token_id": ids["pad"]}, out / "generation_config.json")
    write_json(job.sizes.config(job.dtype, **ids), out / "config.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="LLaMA, in Meta's or transformers' format")
    parser.add_argument("--delta", type=Path, metavar="FOLDER", help="Vicuna's delta (without it, LLaMA is converted)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--max-shard-size", default="5GB", help="largest file (default: %(default)s)")
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
    job = open_job(args.base, args.delta, parse_size(args.max_shard_size), DTYPES[args.dtype])
    print(f"{job.kind} from {job.base.folder}" + (f" + {job.delta.folder}" if job.delta else ""))
    print(f"{job.sizes}; {gigabytes(_result_bytes(job))} in {len(job.plan)} files -> {args.out}", flush=True)
    if job.kind != "Vicuna v0":
        print(f"NOTE: {job.kind} is not the Vicuna v0 that MiniGPT-4's published checkpoints and prompts were made for")
    if job.specials["bos_token"] != "<s>":
        print(f"NOTE: the delta's special_tokens_map.json makes BOS {job.specials['bos_token']}; it is kept so")
    prepare(job, args.out)
    return verify(args.out)
