"""The members of a tar, one after the other, in little memory and always to an end.

Python's own tarfile trusts headers: one that promises 2**60 bytes keeps it busy for years, a sparse map or a compressed
header fills the memory, and a wrong or cut header counts as the end of the archive. Shards come from other people.
"""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .faults import DamagedShard, short

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
MAX_MEMBER = 64 * 2**20  # bytes of a member that are read into memory
MAX_CLAIM = 2**36  # bytes; a header that promises more is damaged
MAX_NAME = 64 * 1024  # bytes of an extended header
CHUNK = 2**20
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
BARE = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def members(stream: io.BufferedReader) -> Iterator[tuple[str, bytes | int]]:
    """(name, content) of each regular file; for one beyond MAX_MEMBER, (name, size).

    Args:
        stream: a tar, which may be packed by gzip, bzip2 or xz.
    Raises:
        DamagedShard: not a tar, or damaged from here on. Errors of the storage itself are passed on.
    """
    head = stream.peek(8)[:8]
    packed = next((opener for magic, opener in PACKED.items() if head.startswith(magic)), None)
    try:
        yield from _members(packed(stream) if packed else stream)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DamagedShard(f"its compression is damaged: {error}") from None
    except OSError as error:
        if packed and error.errno is None:  # bz2 says it so
            raise DamagedShard(f"its compression is damaged: {error}") from None
        raise


def check_head(file: Path) -> None:
    """Raises DamagedShard when a file does not begin as a tar does."""
    with file.open("rb") as stream:
        head = stream.read(BLOCK)
    if not head.startswith(tuple(PACKED)) and (len(head) < BLOCK or any(head)):
        _header(head, 0)


def _header(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        what = str(error) if block else "no end mark, so it was cut off"
        raise DamagedShard(f"not a tar at byte {place:,}: {what}") from None


def _members(stream: BinaryIO) -> Iterator[tuple[str, bytes | int]]:
    place = 0
    name, size = None, None  # what an extended header says of the member after it
    while True:
        header = stream.read(BLOCK)
        if len(header) == BLOCK and not any(header):
            return
        info = _header(header, place)
        extended = info.type in EXTENDED
        length = info.size if extended or size is None else size
        if not 0 <= length <= (MAX_NAME if extended else MAX_CLAIM):
            raise DamagedShard(f"not a tar at byte {place:,}: {short(info.name)!r} claims {length:,} bytes")
        if info.type in BARE:
            length = 0
        wanted = extended or (info.type in PLAIN and length <= MAX_MEMBER)
        content = _take(stream, length, wanted, place + BLOCK)
        place += BLOCK + length + -length % BLOCK
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            facts = _pax(content, place)
            name = facts.get("path", name)
            size = int(facts["size"]) if re.fullmatch("[0-9]{1,15}", facts.get("size", "")) else size
        elif not extended:
            if info.type in PLAIN:
                yield name or info.name, content if wanted else length
            name, size = None, None


def _take(stream: BinaryIO, length: int, wanted: bool, place: int) -> bytes:
    """A member's bytes, or b"" when they are not wanted; the stream stands after its padding then.

    `read(n)` asks for memory as bytes come in, so a promise alone takes none.
    """
    kept, left = [], length + -length % BLOCK
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise DamagedShard(f"cut off within the {length:,} bytes from byte {place:,} on")
        left -= len(chunk)
        if wanted:
            kept.append(chunk)
    return b"".join(kept)[:length]


def _pax(content: bytes, place: int) -> dict[str, str]:
    """`LENGTH key=value\\n` records -> key: value."""
    facts, at = {}, 0
    while at < len(content) and content[at]:
        digits, _, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = content[at + len(digits) + 1 : at + length]
        if length <= len(digits) + 1 or not record.endswith(b"\n") or b"=" not in record:
            raise DamagedShard(f"not a tar before byte {place:,}: a wrong extended header")
        key, _, value = record[:-1].partition(b"=")
        facts[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return facts
