"""Files that are written whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write `target` whole or not at all. The block writes to the temporary file beside it that it is given, which is
    flushed and renamed at the end. When the block raises or the process is killed, `target` is as it was before.
    """
    part = target.with_name(f".{target.name}.{threading.get_native_id()}.tmp")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        with suppress(PermissionError):  # some network shares have no modes
            part.chmod(mode)  # safetensors writes 0600 whatever the umask says: other users could not read it
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a full network disk says so here
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
