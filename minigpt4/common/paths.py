"""Paths in a config -> files; reading and writing texts; checksums."""

import codecs
import hashlib
import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from .errors import DataError
from .file_system import whole_file

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

    Raises:
        ValueError: braces that do not match.
    """
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

    Raises:
        DataError: another encoding, with the file, line and byte.
        OSError
    """
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


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all, see `whole_file`."""
    with whole_file(file) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8
