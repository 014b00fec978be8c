"""What a weight file really is: told by the names and shapes in its header, never by its file name.

Only headers are read (safetensors: the JSON in front; torch: the pickle, with the tensors mapped and not read), so that
26 GB of shards are known in a second. Nothing here knows a model or a config.
"""

import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
                      "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
                      "BOOL": torch.bool}  # fmt: skip
WRAPPERS = ("model", "state_dict", "module")  # what a checkpoint may keep its state dict under

# What DDP, torch.compile, FSDP and Lightning put before a module's names, or into them.
WRAPPED = re.compile(
    r"^((module|model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+|"
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
UNWRAPPED = {"minigpt4", "qformer", "eva_vit", "vit"}  # kinds whose own names never begin so
# What a file can be, in words that follow "is".
KINDS = {
    "eva_vit": "an EVA ViT",
    "vit": "a ViT",
    "vision": "an image network",
    "qformer": "BLIP-2's Q-Former",
    "minigpt4": "a MiniGPT-4 checkpoint",
    "llm": "a language model in transformers' format",
    "llm_meta": "LLaMA in Meta's own format, not converted yet",
    "blip2_transformers": "BLIP-2 in transformers' format; here LAVIS's file is read",
    "adapter": "a LoRA adapter",
    "resume": "what a training run goes on from (optimizer, random state), without weights",
    "gguf": "a GGUF file",
    "lfs": "a git-lfs pointer, not weights",
    "html": "a web page, not weights",
    "text": "a text file, not weights",
    "archive": "a packed archive, not weights",
    "empty": "an empty file",
    "truncated": "cut off: its end is missing",
    "damaged": "damaged, or no weight file",
    "code": "a pickle that would run code, which is never done here",
    "folder": "a folder, not a file",
    "missing": "not there",
    "unknown": "a weight file of another model",
}
NO_WEIGHTS = {"lfs", "html", "text", "archive", "empty", "truncated", "damaged", "code", "folder", "missing"}
DOWNLOAD_AGAIN = {
    "lfs": "run `git lfs pull` in the folder it was cloned to",
    "html": "the download went to a page about the file (or an error page): fetch the file itself",
    "text": "download the file itself",
    "archive": "unpack it, and write the path of what was in it",
    "empty": "download it again",
    "truncated": "download it again to the end",
    "damaged": "download it again, or write the path of the right file",
    "code": "take a file that holds tensors only",
    "folder": "write the path of the weight file in it",
    "missing": "write the path of the file",
}


@dataclass(frozen=True)
class FileFacts:
    """What `identify` found.

    Args:
        kind: a key of KINDS.
        bytes: size on disk.
        note: what the reader should know beside the kind, e.g. how much is missing.
        tensors: name -> tensor with the right shape and dtype; its values may not be there, see `value`.
        facts: what the file holds beside weights: epoch, step, config, ...
        sizes: what the shapes say: width, depth, queries, ...
    """

    path: Path
    kind: str
    bytes: int = 0
    note: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(t.numel() for t in self.tensors.values())

    def value(self, name: str) -> Tensor:
        """One tensor, read from the file."""
        if not self.tensors[name].is_meta:
            return self.tensors[name]
        # Not by safetensors: it maps the whole file, which fails where the file is larger than the memory.
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            entry = header.get(name) or next(e for n, e in header.items() if WRAPPED.sub("", n) == name)
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            data = bytearray(file.read(end - start))
        return torch.frombuffer(data, dtype=self.tensors[name].dtype).reshape(self.tensors[name].shape)

    def describe(self) -> str:
        """E.g. `an EVA ViT: width 1408, depth 39, patch 14, grid 16; 511 tensors, 986M numbers, 2.0 GB`."""
        text = KINDS[self.kind] + (f" ({self.note})" if self.note else "")
        if self.kind in NO_WEIGHTS:
            return text
        shown = [
            f"{name} {value:,}" for name, value in self.sizes.items() if "from" not in name and "to LLM" not in name
        ]
        if "from width" in self.sizes:
            shown.append(f"projection {self.sizes['from width']:,} -> {self.sizes['to LLM width']:,}")
        sizes = ", ".join(shown)
        numbers = f"{len(self.tensors)} tensors, {amount(self.parameters)} numbers, " if self.tensors else ""
        return f"{text}{': ' if sizes else ''}{sizes}; {numbers}{gigabytes(self.bytes)}"


def amount(n: float) -> str:
    """3937280 -> 3.9M"""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


def gigabytes(n: float) -> str:
    """Bytes in the unit that fits, 1000s: 26.0 GB, 16.4 MB, 130 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} bytes"


def identify(path: str | Path) -> FileFacts:
    """What the file at `path` is. Never raises for what a file may hold."""
    path = Path(path)
    if path.is_dir():
        return FileFacts(path, "folder")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        return FileFacts(path, "missing", note=error.strerror or "")
    kind, note = _sniff(head, size)
    if kind:
        return FileFacts(path, kind, size, note)
    if _begins_safetensors(head):
        return _identify_safetensors(path, size)
    return _identify_torch(path, head, size)


def _sniff(head: bytes, size: int) -> tuple[str, str]:
    """(kind, note) of what is no safetensors or torch file; ("", "") when it may be one."""
    start = head.lstrip()[:2000].lower()
    if not head:
        return "empty", ""
    if start.startswith(b"version https://git-lfs"):
        wanted = re.search(rb"size (\d+)", head)
        return "lfs", f"of a file of {gigabytes(int(wanted[1]))}" if wanted else ""
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        title = re.search(rb"<title[^>]*>\s*([^<]{1,60})", head, re.I)
        return "html", title[1].decode(errors="replace").strip() if title else ""
    if head.startswith(b"GGUF"):
        return "gguf", ""
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        return "archive", ""
    if _begins_safetensors(head) or head.startswith((b"PK", b"\x80")):
        return "", ""
    try:
        text = head[: 4096 - 4].decode()  # 4 bytes less: the cut may fall into a character
    except UnicodeDecodeError:
        return "", ""
    return ("text", f"it begins {text[:40].strip()!r}") if text.isprintable() or "\n" in text else ("", "")


def is_safetensors(path: Path) -> bool:
    """By its content, whatever it is called."""
    with path.open("rb") as file:
        return _begins_safetensors(file.read(16))


def _begins_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _identify_safetensors(path: Path, size: int) -> FileFacts:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {
            name: torch.empty(entry["shape"], dtype=SAFETENSORS_DTYPES.get(entry["dtype"], torch.uint8), device="meta")
            for name, entry in header.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if len(raw) < length:
            return FileFacts(path, "truncated", size, "even the header is not whole")
        return FileFacts(path, "damaged", size, f"safetensors header: {error}")
    if size < end:
        return FileFacts(path, "truncated", size, f"{gigabytes(size)} of {gigabytes(end)} are there")
    return _classified(path, size, tensors, {})


def _identify_torch(path: Path, head: bytes, size: int) -> FileFacts:
    try:
        with warnings.catch_warnings():  # of pickles that torch did not write
            warnings.simplefilter("ignore")
            data = load_torch(path)
    except Exception as error:  # torch.load raises many kinds
        return FileFacts(path, *_why_not_torch(head, size, str(error)))
    if not isinstance(data, dict):
        return FileFacts(path, "unknown", size, f"it holds a {type(data).__name__}")
    wrapper = next((w for w in WRAPPERS if isinstance(data.get(w), dict)), None)
    state = data[wrapper] if wrapper else data
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    facts = {str(k): v for k, v in data.items() if k != wrapper and not isinstance(v, Tensor)}
    return _classified(path, size, tensors, facts)


def load_torch(path: Path) -> Any:
    """What torch.save wrote, its tensors mapped where they can be. No code of the file runs. torch.load raises many
    kinds of exceptions."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":  # by this name torch would take it for one
            return torch.load(file, map_location="cpu", weights_only=True)
        zipped = file.read(2) == b"PK"  # torch before 1.6 wrote plain pickles, which cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def said_by_torch(error: Exception) -> str:
    """The first line of what torch.load raised; not its advice to run the file's code."""
    first = str(error).split("\n")[0][:100] or type(error).__name__
    return "it holds more than tensors and plain values" if first.startswith("Weights only load failed") else first


def _why_not_torch(head: bytes, size: int, error: str) -> tuple[str, int, str]:
    first = "" if error.startswith("Weights only load failed") else error.split("\n")[0][:100]
    if wanted := re.search(r"GLOBAL ([\w.]+)", error):
        return "code", size, f"it wants {wanted[1]}"
    if head.startswith(b"\x80") and "Unsupported operand" in error:
        return "code", size, "a pickle that torch did not write"
    if "central directory" in error or "unexpected EOF" in error or "Ran out of input" in error:
        zipped = head.startswith(b"PK") or "unexpected EOF" in error
        return ("truncated" if zipped else "damaged"), size, f"{gigabytes(size)} are there"
    if head.startswith(b"PK"):
        return "archive", size, "a zip that is not torch's"
    return "damaged", size, first


def _classified(path: Path, size: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> FileFacts:
    tensors, wrapper = bare_names(tensors)
    kind, prefix = _kind(tensors, facts)
    bare = {name.removeprefix(prefix): t for name, t in tensors.items()} if prefix else tensors
    note = f"its names begin with {prefix!r}" if prefix else ""
    if wrapper:
        note = f"its names have {wrapper!r}, which is left out"
    if kind == "unknown":
        names = ", ".join(list(tensors)[:3])
        note = f"{names}, ..." if names else f"it holds {', '.join(list(facts)[:5])}"
    return FileFacts(path, kind, size, note, tensors, facts, _sizes(kind, bare))


def bare_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without what a wrapper put into their names, where that makes them names of UNWRAPPED; and what it
    was. An LLM's own names begin with `model.`: they stay."""
    bare = {WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    if list(bare) == list(tensors) or len(bare) < len(tensors) or _kind(tensors, {})[0] == "llm":
        return tensors, ""
    if _kind(bare, {})[0] not in UNWRAPPED:
        return tensors, ""
    return bare, next(match[0] for name in tensors if (match := WRAPPED.search(name)))


def _kind(tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[str, str]:
    """(kind, prefix that all names of it have)."""

    def has(pattern: str) -> re.Match | None:
        return next((m for name in tensors if (m := re.search(pattern, name))), None)

    if not tensors and {"optimizer", "param_groups"} & set(facts):
        return "resume", ""
    if has(r"\.lora_[AB]\."):
        return ("minigpt4", "") if has(r"^llama_proj\.") else ("adapter", "")
    if has(r"^llama_proj\."):
        return "minigpt4", ""
    if has(r"^Qformer\.bert\."):
        return "qformer", ""
    if has(r"^qformer\.") and has(r"^(query_tokens|language_projection\.)"):
        return "blip2_transformers", ""
    if has(r"(^|\.)attention\.w[qkv]\.weight$") or has(r"^tok_embeddings\.weight$"):
        return "llm_meta", ""
    if has(r"^(model|transformer)\.(layers|h)\.\d+\.") or has(r"^(model\.embed_tokens|lm_head)\.weight$"):
        return "llm", ""
    if vit := has(r"^(.*?)blocks\.\d+\.attn\.(qkv\.weight|q_proj\.weight|q_bias)$"):
        prefix = vit[1]
        return ("eva_vit" if has(r"\.attn\.q_bias$") else "vit"), prefix
    if any(t.ndim == 4 and t.shape[1] == 3 for t in tensors.values()):
        return "vision", ""
    return "unknown", ""


def _sizes(kind: str, tensors: dict[str, Tensor]) -> dict[str, int]:
    """What the shapes of the tensors say of the model, for the kinds that a config names."""
    found: dict[str, int] = {}

    def note(what: str, name: str, axis: int) -> None:
        if name in tensors and tensors[name].ndim > axis:
            found[what] = tensors[name].shape[axis]

    def layers(pattern: str) -> None:
        numbers = {int(m[1]) for name in tensors if (m := re.match(pattern, name))}
        if numbers:
            found["depth"] = len(numbers)

    if kind in ("eva_vit", "vit"):
        note("width", "patch_embed.proj.weight", 0)
        layers(r"blocks\.(\d+)\.")
        note("patch", "patch_embed.proj.weight", 2)
        if "pos_embed" in tensors:
            found["grid"] = int((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    elif kind in ("qformer", "minigpt4"):
        note("queries", "query_tokens", 1)
        note("Q-Former width", "query_tokens", 2)
        layers(r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
        note("image width", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight", 1)
        matrices = sorted(n for n in tensors if re.match(r"llama_proj\..*weight$", n) and tensors[n].ndim == 2)
        if matrices:
            note("from width", matrices[0], 1)
            note("to LLM width", matrices[-1], 0)
    elif kind == "llm":
        note("vocabulary", "model.embed_tokens.weight", 0)
        note("width", "model.embed_tokens.weight", 1)
        layers(r"model\.layers\.(\d+)\.")
    elif kind == "llm_meta":
        layers(r"layers\.(\d+)\.")
    return found
