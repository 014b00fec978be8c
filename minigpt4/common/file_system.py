"""Files that are written whole or not at all, and locks.

Some file systems cannot lock, flush, rename or change modes. There that step is left out, after a warning.
"""

import errno
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("minigpt4")
NOT_SUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_warned: set[tuple[str, Path]] = set()


@contextmanager
def if_supported(what: str, path: Path, *also: int) -> Iterator[None]:
    """Skip a file operation that the file system cannot do, with one warning for each folder.

    Args:
        what: the operation, for the warning.
        also: error numbers that say so for this operation, beside NOT_SUPPORTED.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {*NOT_SUPPORTED, *also}:
            raise
        if (what, path.parent) not in _warned:
            log.warning("%s: this file system cannot %s (%s); going on without", path, what, error.strerror)
            _warned.add((what, path.parent))


def lock(file, path: Path, wait: bool = False, posix: bool = False) -> bool:
    """Lock an open file. Returns False only when another process holds the lock.

    Args:
        wait: wait until the other process releases the lock.
        posix: use lockf, whose lock child processes do not inherit, instead of flock.
    """
    # ENOLCK: NFS without its lock service. EBADF: flock of a folder on NFS, which locks only what is open for writing.
    with if_supported("lock files: two commands that write there at once would not see each other", path,
                      errno.ENOLCK, errno.EBADF):  # fmt: skip
        try:
            (fcntl.lockf if posix else fcntl.flock)(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
    return True


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    # EACCES: a folder that may be written to and not be listed.
    with if_supported("flush a folder" if path.is_dir() else "flush files", path, errno.EACCES):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_mode(path: Path, mode: int) -> None:
    """`chmod`, where there are modes (FAT and network shares have none)."""
    with if_supported("change modes", path, errno.EPERM):
        path.chmod(mode)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one; copy it where there is no renaming (some object stores)."""
    with if_supported("rename: a file that is being replaced is not whole for a moment", target, errno.EXDEV):
        os.replace(source, target)
        return
    shutil.copyfile(source, target)
    source.unlink()


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
        set_mode(part, mode)  # safetensors writes 0600 whatever the umask says: other users could not read it
        flush(part)
        replace(part, target)
        flush(target.parent)
    finally:
        part.unlink(missing_ok=True)
