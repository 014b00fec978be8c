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
    """`/data/{00000..01255}.tar`, `/data/*.tar`, a URL pattern or a list of these -> shard names, in order.

    The part of a path that exists is taken as it is written, and only the rest is a pattern. So `/data/align [v2]` and
    `/data/align [v2]/*.tar` need no escapes.

    Raises:
        ValueError: braces that do not match.
    """
    found: list[str] = []
    for pattern in [storage] if isinstance(storage, str) else storage:
        if pattern.startswith(REMOTE):
            found += braceexpand(pattern)
            continue
        here = Path(pattern).expanduser()
        names = _expand(here)
        if not any(map(os.path.exists, names)) and any(map(os.path.exists, in_project := _expand(PROJECT / here))):
            names = in_project
        found += names
    return found


def _expand(place: Path) -> list[str]:
    found = []
    there, rest = _existing(place)
    for name in braceexpand(rest) if rest else [""]:
        folder, pattern = _existing(there / name)
        if any(c in pattern for c in "*?["):
            found += sorted(str(folder / match) for match in glob(pattern, root_dir=folder))
        else:
            found.append(str(there / name))
    return found


def _existing(place: Path) -> tuple[Path, str]:
    """(the longest leading part of `place` that exists, the rest)."""
    there = next((p for p in (place, *place.parents) if p.exists()), Path())
    return there, "" if there == place else str(place.relative_to(there))


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
