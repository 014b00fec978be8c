"""Paths in a config -> files; files that are written whole or not at all; checksums."""

import codecs
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from .errors import DataError

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parent  # the clone, when the package is installed with `pip install -e`
REMOTE = ("http://", "https://", "s3://", "gs://", "pipe:", "hdfs://")


def resolve_path(path: str) -> str:
    """Return the path of an existing file: relative paths are tried from the working directory, then from the project's
    folder. A path that exists in neither place, or a URL, is returned as it is."""
    if path.startswith(REMOTE):
        return path
    here = Path(os.path.expanduser(path))  # a user without a home directory: as it stands
    return str(PROJECT / here) if not here.exists() and (PROJECT / here).exists() else str(here)


def expand_shards(storage: str | Sequence[str]) -> list[str]:
    """`/data/{00000..01255}.tar`, `/data/*.tar`, a URL pattern or a list of these -> shard names, in order. A name that
    exists as it is written is no pattern. Relative ones are tried as in `resolve_path`.
    Raises ValueError: braces that do not match."""
    found: list[str] = []
    for pattern in [storage] if isinstance(storage, str) else storage:
        if pattern.startswith(REMOTE):
            found += braceexpand(pattern)
            continue
        here = os.path.expanduser(pattern)
        names = _expand(here)
        if not any(map(os.path.exists, names)) and any(map(os.path.exists, in_project := _expand(f"{PROJECT}/{here}"))):
            names = in_project
        found += names
    return found


def missing_shards(shards: Sequence[str]) -> list[str]:
    """Those of the names that `expand_shards` returned which are files and not there."""
    return [shard for shard in shards if not shard.startswith(REMOTE) and not os.path.exists(shard)]


def _expand(pattern: str) -> list[str]:
    found = []
    for name in [pattern] if os.path.exists(pattern) else braceexpand(pattern):
        is_glob = any(c in name for c in "*?[") and not os.path.exists(name)
        found += sorted(glob(name)) if is_glob else [name]
    return found


def read_text(file: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark. Lines may end in \\r\\n.
    Raises DataError: another encoding, with the file, line and byte; or OSError."""
    content = Path(file).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{file}:{line}: byte {column} of the line is 0x{content[error.start]:02x}, which is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write `target` whole or not at all. The block writes to the temporary file beside it that it is given, which is
    flushed and renamed at the end. When the block raises or the process is killed, `target` is as it was before."""
    part = target.with_name(f".{target.name}.{threading.get_native_id()}.tmp")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        settle(part, mode)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def settle(file: Path, mode: int) -> None:
    """Give a file that was written its mode, and wait until the disk has it."""
    with suppress(PermissionError):  # some network shares have no modes
        file.chmod(mode)  # safetensors writes 0600 whatever the umask says: other users could not read it
    with file.open("rb") as written:
        os.fsync(written.fileno())  # a full network disk says so here


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all, see `whole_file`."""
    with whole_file(file) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8
