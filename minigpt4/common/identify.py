"""What a weight file holds: decided by the names and shapes in its header, never by its file name (identify.toml).

Only headers are read: the JSON of safetensors, the pickle of torch. 26 GB of shards take a second.
"""

import json
import re
import tomllib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
                      "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
                      "BOOL": torch.bool}  # fmt: skip
STATE_KEYS = ("model", "state_dict", "module")  # keys under which a checkpoint may keep its state dict
_ENTRIES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
KINDS = {kind: entry["is"] for kind, entry in _ENTRIES.items()}
DOWNLOAD_AGAIN = {kind: entry["do"] for kind, entry in _ENTRIES.items() if "do" in entry}
NO_WEIGHTS = set(DOWNLOAD_AGAIN)
NAMES = {kind: re.compile(entry["names"]) for kind, entry in _ENTRIES.items() if "names" in entry}
HEADS = {kind: tuple(map(str.encode, entry["heads"])) for kind, entry in _ENTRIES.items() if "heads" in entry}


@dataclass(frozen=True)
class FileFacts:
    """What `identify` found. Tensors of safetensors are on the meta device, see `value`."""

    path: Path
    kind: str  # a key of KINDS
    bytes: int = 0
    note: str = ""  # a detail for the reader, e.g. how much of the file is missing
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)  # what it holds beside weights: epoch, config, ...

    @property
    def llm_width(self) -> int | None:
        """D_llm of the projection of a MiniGPT-4 checkpoint."""
        weights = [self.tensors[name] for name in sorted(self.tensors) if re.match(r"llama_proj\..*weight$", name)]
        return weights[-1].shape[0] if weights else None

    @property
    def parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(t.numel() for t in self.tensors.values())

    def value(self, name: str) -> Tensor:
        """One tensor, read from the file."""
        like = self.tensors[name]
        if not like.is_meta:
            return like
        # Not by safetensors: it maps the whole file, which fails where the file is larger than the memory.
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            start, end = header[name]["data_offsets"]
            file.seek(8 + length + start)
            return torch.frombuffer(bytearray(file.read(end - start)), dtype=like.dtype).reshape(like.shape)

    def describe(self) -> str:
        """E.g. `an EVA ViT; 511 tensors, 986M numbers, 2.0 GB`."""
        text = KINDS[self.kind] + (f" ({self.note})" if self.note else "")
        if self.kind in NO_WEIGHTS:
            return text
        numbers = f"{len(self.tensors)} tensors, {amount(self.parameters)} numbers, " if self.tensors else ""
        return f"{text}; {numbers}{gigabytes(self.bytes)}"


def amount(n: float) -> str:
    """3937280 -> 3.9M"""
    return next(
        (f"{n / size:.1f}{unit}" for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if n >= size), f"{n:.0f}"
    )


def gigabytes(n: float) -> str:
    """Bytes in the unit that fits, 1000s: 26.0 GB, 16.4 MB, 130 bytes."""
    text = amount(n)
    return f"{text[:-1]} {text[-1].replace('B', 'G')}B" if n >= 1e3 else f"{text} bytes"


def identify(path: str | Path) -> FileFacts:
    """What the file at `path` is. Never raises for what a file may hold."""
    path = Path(path)
    if path.is_dir():
        return FileFacts(path, "folder")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return FileFacts(path, "missing", note=error.strerror or "")
    if not head:
        return FileFacts(path, "empty")
    for kind, heads in HEADS.items():
        if head.lstrip().lower().startswith(heads):
            return FileFacts(path, kind, size)
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
    return _identify_safetensors(path, size) if is_safetensors else _identify_torch(path, head, size)


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
        kind = "truncated" if len(raw) < length else "damaged"
        return FileFacts(path, kind, size, f"safetensors header: {error}")
    if size < end:
        return FileFacts(path, "truncated", size, f"{gigabytes(size)} of {gigabytes(end)} are there")
    return _by_names(path, size, tensors, {})


def _identify_torch(path: Path, head: bytes, size: int) -> FileFacts:
    try:
        with warnings.catch_warnings():  # of pickles that torch did not write
            warnings.simplefilter("ignore")
            data = load_torch(path)
    except Exception as error:  # torch.load raises many kinds
        text = head[:40].decode(errors="replace").strip()
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            return FileFacts(path, "code", size, f"it wants {wanted[1]}")
        if head.startswith(b"\x80") and "Unsupported operand" in str(error):
            return FileFacts(path, "code", size, "a pickle that torch did not write")
        if "unexpected EOF" in str(error) or (head.startswith(b"PK") and "central directory" in str(error)):
            return FileFacts(path, "truncated", size, f"{gigabytes(size)} are there")
        if text.isprintable() and "\ufffd" not in text:
            return FileFacts(path, "text", size, f"it begins {text!r}")
        return FileFacts(path, "damaged", size)
    if not isinstance(data, dict):
        return FileFacts(path, "unknown", size, f"it holds a {type(data).__name__}")
    below = next((key for key in STATE_KEYS if isinstance(data.get(key), dict)), None)
    state = data[below] if below else data
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    facts = {str(k): v for k, v in data.items() if k != below and not isinstance(v, Tensor)}
    return _by_names(path, size, tensors, facts)


def load_torch(path: Path) -> Any:
    """What torch.save wrote, memory-mapped where possible. No code of the file runs. Raises many kinds of errors."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":  # by this name torch would take it for one
            return torch.load(file, map_location="cpu", weights_only=True)
        zipped = file.read(2) == b"PK"  # torch before 1.6 wrote plain pickles, which cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _by_names(path: Path, size: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> FileFacts:
    """The facts of a file whose header could be read: the names of its tensors decide."""
    kind, note = next((kind for kind, names in NAMES.items() if any(map(names.search, tensors))), "unknown"), ""
    if kind == "unknown" and any(t.ndim == 4 and t.shape[1] == 3 for t in tensors.values()):
        kind = "vision"
    if not tensors and {"optimizer", "param_groups"} & set(facts):
        kind = "resume"
    if kind == "unknown":
        note = f"{', '.join(list(tensors)[:3])}, ..." if tensors else f"it holds {', '.join(list(facts)[:5])}"
    return FileFacts(path, kind, size, note, tensors, facts)
