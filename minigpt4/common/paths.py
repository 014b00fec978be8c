"""Where files named in a config are looked for; their checksums; texts that are written whole."""

import hashlib
import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parent  # the clone, when the package is installed with `pip install -e`
REMOTE = ("http://", "https://", "s3://", "gs://", "pipe:", "hdfs://")


def resolve_path(path: str) -> str:
    """A relative path is looked up from the working directory, then from the project's folder."""
    if path.startswith(REMOTE):
        return path
    here = Path(os.path.expanduser(path))  # a user without a home directory: as it stands
    return str(PROJECT / here) if not here.exists() and (PROJECT / here).exists() else str(here)


def expand_shards(storage: str | Sequence[str]) -> list[str]:
    """`/data/{00000..01255}.tar`, `/data/*.tar`, a URL pattern or a list of these -> shard names, in order.

    Raises:
        ValueError: braces that do not match.
    """
    found = []
    for pattern in [storage] if isinstance(storage, str) else storage:
        for name in braceexpand(pattern):
            if name.startswith(REMOTE) or not any(c in name for c in "*?["):
                found.append(resolve_path(name))
            else:
                here = os.path.expanduser(name)
                found += sorted(glob(here)) or sorted(glob(str(PROJECT / here)))
    return found


def sha256(file: Path) -> str:
    """Of a file's content, 64 hexadecimal digits. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(file: Path, text: str) -> None:
    """Write `file` whole or not at all: a killed process leaves what stood there before."""
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
