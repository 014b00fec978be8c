"""Locks, flushes, modes and renames, which some file systems cannot do: there they are left out, after a warning."""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("minigpt4")
NOT_SUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_warned: set[tuple[str, Path]] = set()


@contextmanager
def if_supported(what: str, path: Path, *also: int) -> Iterator[None]:
    """Leave out a file operation that the file system cannot do, with one warning for each folder.

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
    """Lock an open file for one holder. Returns False only when another one holds it.

    Args:
        wait: until the other one lets go of it.
        posix: lockf's lock, which child processes do not inherit, instead of flock's.
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
