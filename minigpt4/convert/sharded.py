"""Read and write weight files larger than memory, one tensor at a time; checksums of tensors."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.checkpoint import finite
from ..common.errors import CheckpointError
from ..common.file_system import whole_file
from ..common.identify import DOWNLOAD_AGAIN, SAFETENSORS_DTYPES, FileFacts, identify
from ..models.llm_checks import read_json as read_json
from ..models.llm_checks import weight_files as weight_files


def weight_file(path: Path) -> FileFacts:
    """Read the header of a weight file; `value(name)` of the result reads one tensor.

    Raises:
        CheckpointError: the file holds no weights: a git-lfs pointer, a web page, truncated, ...
    """
    found = identify(path)
    if not found.tensors:
        again = DOWNLOAD_AGAIN.get(found.kind, "weights in safetensors or torch's format are needed")
        raise CheckpointError(f"{path} is {found.describe()}; {again}")
    return found


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file completely or not at all. Raises CheckpointError."""
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def checksum(tensor: Tensor) -> str:
    """CRC-32 of the values' bytes."""
    return f"{zlib.crc32(_bytes_of(tensor)):08x}"


def damaged_tensors(path: Path, sums: Mapping[str, dict]) -> list[str]:
    """The names whose tensor in the file `path` no longer has its checksum; all names if it cannot be read."""
    file = identify(path)
    return [n for n, known in sums.items() if n not in file.tensors or checksum(file.value(n)) != known["crc32"]]


def write_shard(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensor_of: Callable[[str], Tensor]
) -> dict[str, dict]:
    """Write one safetensors file with one tensor in memory at a time; safetensors' own `save_file` needs all at once.

    Args:
        shapes: name -> shape, in the order they are written.
        tensor_of: returns the tensor of a name, in its shape and `dtype`.
    Returns:
        name -> {"crc32": checksum}.
    Raises:
        CheckpointError: a tensor holds NaN or infinity, or the disk is full; there is no file then.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers needs the framework
    dtype_name = next(name for name, known in SAFETENSORS_DTYPES.items() if known == dtype)
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    sums: dict[str, dict] = {}
    try:
        with whole_file(path) as part, part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in shapes:
                tensor = tensor_of(name)
                if not finite(tensor):
                    raise CheckpointError(f"{name} holds NaN or infinity: one of its input files is damaged")
                sums[name] = {"crc32": checksum(tensor)}
                file.write(_bytes_of(tensor))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    return sums


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
