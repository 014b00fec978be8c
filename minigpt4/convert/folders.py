"""Write the folders of models: JSON files, and a folder that is whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..common.errors import CheckpointError
from ..common.paths import settle, write_whole


def write_json(data: Any, path: Path) -> None:
    """Write a JSON file of a model's folder."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; rename it to `out` when the block succeeds, else delete it.

    A killed run leaves `.NAME.partial`, which the next run deletes.
    Raises CheckpointError: `out` exists, or the folder cannot be written."""
    if out.exists():
        raise CheckpointError(f"--out {out}: exists already; name a new folder")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                settle(file, partial.stat().st_mode & 0o666)  # what the umask leaves of it
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"--out {out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
