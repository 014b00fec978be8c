"""Files that are written whole or not at all, and locks."""

import errno
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

log = logging.getLogger("minigpt4")


def lock(file, path: Path, wait: bool = False, posix: bool = False) -> bool:
    """Lock an open file. Returns False only when another process holds the lock. Some network file systems have no
    locks: a warning says so.

    Args:
        wait: wait until the other process releases the lock.
        posix: use lockf, whose lock child processes do not inherit, instead of flock.
    """
    try:
        (fcntl.lockf if posix else fcntl.flock)(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        log.warning("%s: cannot be locked (%s): do not write there with two commands at once", path, error.strerror)
    return True


@contextmanager
def alone_in(folder: Path, command: str, wait: bool = False) -> Iterator[None]:
    """Make the --out folder of a command, hold its lock in the block, and delete the `.*.tmp` of a killed run.

    Args:
        wait: wait until another process releases the lock.
    Raises:
        UserError: it cannot be made or opened; another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--out {folder}: must be a folder you can write to: {error}") from error
    try:
        if not lock(handle, folder, wait):
            raise UserError(f"--out {folder}: another {command} is filling it")
        for stale in folder.glob(".*.tmp"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        yield
    finally:
        os.close(handle)


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
