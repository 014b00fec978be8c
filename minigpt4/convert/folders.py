"""Read and write the folders of models: JSON files, weight files, and a folder that is whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import CheckpointError
from ..common.file_system import whole_file
from ..common.identify import DOWNLOAD_AGAIN, FileFacts, identify


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


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; rename it to `out` when the block succeeds, else delete it.

    A killed run leaves `.NAME.partial`, which the next run deletes.

    Raises:
        CheckpointError: `out` exists, or the folder cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"--out {out}: exists already; name a new folder")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"--out {out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
