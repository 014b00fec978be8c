"""Read and write weight files larger than memory, one tensor at a time; checksums of tensors."""

import errno
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.checkpoint import HARMLESS, atomic_save
from ..common.errors import CheckpointError, UserError, some
from ..common.identify import DOWNLOAD_AGAIN, identify
from ..models.llm_checks import read_json as read_json
from ..models.llm_checks import weight_files

SAFETENSORS_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
SUM_CHUNK = 1 << 16  # values turned into float64 at a time
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class DiskFullError(UserError):
    """The disk filled up while a file was being written."""


class WeightFile:
    """One .bin, .pth or .safetensors file. Opening it reads names and shapes; `read` memory-maps one tensor.

    Raises:
        CheckpointError: the file holds no weights: a git-lfs pointer, a web page, truncated, ...
    """

    def __init__(self, path: Path):
        self.path, self._facts = path, identify(path)
        if not self._facts.tensors:
            again = DOWNLOAD_AGAIN.get(self._facts.kind, "weights in safetensors or torch's format are needed")
            raise CheckpointError(f"{path}: {self._facts.describe()}; {again}")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._facts.tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor by its name. Do not write to it."""
        return self._facts.value(name)


def weight_paths(folder: Path) -> list[Path]:
    """The weight files of a folder in transformers format. Raises CheckpointError when one is missing."""
    return [file.path for file in weight_files(folder)]


def check_shapes(found: dict[str, tuple], expected: dict[str, tuple], where: str) -> None:
    """Raises CheckpointError when tensors are missing, unexpected or of another shape; it names them.

    Args:
        found, expected: name -> shape.
        where: the file or folder, for the message.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected and not HARMLESS.search(name)],
        "of another shape": [
            f"{name} {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
        ],
    }
    lines = [f"  {what}: {some(names)}" for what, names in problems.items() if names]
    if lines:
        raise CheckpointError("\n".join([f"{where} does not hold the weights it should", *lines]))


def checksum(tensor: Tensor) -> dict[str, Any]:
    """Shape, sum of the values and CRC-32 of the bytes.

    The sum is taken in float64, where adding fp16 values is exact, so it is the same on every machine.
    """
    flat = tensor.contiguous().flatten()
    total = sum(float(chunk.double().sum()) for chunk in flat.split(SUM_CHUNK))
    return {"shape": list(tensor.shape), "sum": total, "crc32": f"{zlib.crc32(_bytes_of(flat)):08x}"}


def write_shard(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensor_of: Callable[[str], Tensor]
) -> dict[str, dict]:
    """Write one safetensors file with one tensor in memory at a time; a failed write leaves no file.

    safetensors' own `save_file` needs all tensors at once.

    Args:
        shapes: name -> shape, in the order they are written.
        tensor_of: returns the tensor of a name, in its shape and `dtype`.
    Returns:
        name -> checksum.
    Raises:
        CheckpointError: a tensor holds NaN or infinity; the file cannot be written.
        DiskFullError: the disk is full.
    """
    sums: dict[str, dict] = {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers needs the framework
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes

    def save(_, temporary: str) -> None:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                tensor = tensor_of(name).contiguous()
                assert (tuple(tensor.shape), tensor.dtype) == (tuple(shape), dtype), name
                sums[name] = checksum(tensor)
                if not abs(sums[name]["sum"]) < float("inf"):
                    raise CheckpointError(f"{name} holds NaN or infinity: one of its input files is damaged")
                file.write(_bytes_of(tensor.flatten()))

    _save(None, path, save)
    return sums


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file; a failed write leaves the old one. Raises DiskFullError, CheckpointError."""
    _save(data, path, lambda d, p: Path(p).write_text(json.dumps(d, indent=2, ensure_ascii=False) + "\n", "utf-8"))


def damaged_tensors(path: Path, sums: Mapping[str, dict]) -> list[str]:
    """The names whose tensor in the file `path` no longer has its checksum; all names if it cannot be read."""
    try:
        file = WeightFile(path)
    except CheckpointError:
        return list(sums)
    return [name for name, known in sums.items() if name not in file.shapes or checksum(file.read(name)) != known]


def parse_size(text: str) -> int:
    """'5GB', '300MB', '1000000' -> bytes.

    Raises:
        UserError: not a size, or zero.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = float(match[1]) * 1000 ** "_KMGT".index(match[2].upper() or "_") if match else 0
    if size < 1:
        raise UserError(f"--max-shard-size: {text!r} is not a size; write e.g. 5GB or 500MB")
    return int(size)


def _bytes_of(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())


def _save(data: Any, path: Path, save: Callable[[Any, str], None]) -> None:
    try:
        atomic_save(data, path, save)
    except CheckpointError as error:
        if getattr(error.__cause__, "errno", None) in FULL_DISK:
            raise DiskFullError(f"{path}: the disk is full") from error
        raise
