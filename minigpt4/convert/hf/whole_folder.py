"""A folder that is written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...common.errors import CheckpointError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` when all went well. A killed run leaves `.NAME.partial`
    behind, which the next one clears away.

    Raises:
        CheckpointError: `out` exists, the disk is full, the place cannot be written to.
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
