"""What can be wrong with data: the faults, the checks that find them, and how long a failed read is tried again.

`bad_samples.jsonl` and `minigpt4 data check` name a fault by its class. docs/data-faults.md says what happens then.
"""

import errno
import http.client
import itertools
import json
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep
from typing import Any

from PIL import Image

from ..common.logger import log
from ..processors.image_processors import decode_image
from ..processors.text_processors import has_text

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further try after a fault of the storage or the network
IMAGES = ("jpg", "jpeg", "png", "webp")  # suffixes of pictures in shards
MAX_MEMBER = 64 * 2**20  # bytes of a shard's member that are read into memory
MAX_CAPTION = 20_000  # characters; a tokenizer takes seconds for more, and only max_txt_len tokens are kept
SHOWN = 120  # characters of a wrong value that a message shows
TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH
}  # fmt: skip


class SampleFault(ValueError):
    """A sample or a shard that cannot be used; it is skipped and counted."""


class NoImage(SampleFault):
    """A sample without an image among its members."""


class NoCaption(SampleFault):
    """A sample without .json, or whose caption is missing or empty."""


class BadCaption(SampleFault):
    """A caption that is not a string, is too long, or cannot be written as UTF-8."""


class BadJson(SampleFault):
    """A .json that is not JSON, not an object, or too large."""


class DuplicateMember(SampleFault):
    """Two members of a sample have the same name, so it is not known which caption belongs to the picture."""


class HugeMember(SampleFault):
    """A file of more than MAX_MEMBER bytes; it is not read into memory."""


class DamagedShard(SampleFault):
    """A shard that is no whole tar. The samples before the damage are used."""


class EmptyShard(SampleFault):
    """A tar without samples."""


class MissingFile(SampleFault):
    """A shard or picture that does not exist, or no longer."""


class Unreadable(SampleFault):
    """A shard or picture that could not be read in any of the tries."""


class PipeFailed(OSError):
    """The command behind a remote shard ended with an error, or sent nothing for too long."""


def is_transient(error: BaseException) -> bool:
    """Whether the same read may succeed later: an NFS error, a lost connection, a busy server."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, (TimeoutError, ConnectionError, PipeFailed, http.client.HTTPException)):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT


def pause_after(error: Exception, attempt: int, where: str, pauses: Sequence[float] = PAUSES) -> SampleFault | None:
    """Sleep and return None when read `attempt` (from 0) of `where` is to be tried again; else the fault to report."""
    if is_transient(error) and attempt < len(pauses):
        log.warning("%s: %s; trying again in %g s", where, short(str(error)), pauses[attempt])
        sleep(pauses[attempt])
        return None
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (404, 410):
        return MissingFile("no such file" if error.strerror else short(str(error)))
    tries = f" ({attempt + 1} tries)" if is_transient(error) else ""
    return Unreadable(f"{type(error).__name__} {short(str(error))}{tries}")


def short(text: str) -> str:
    """At most SHOWN characters of a text; wrong data may be of any length."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def decode_json(content: bytes | str, name: str = "its json") -> dict:
    """The object that a JSON text holds. Raises BadJson."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadJson(f"{name} cannot be parsed: {short(str(error))}") from None
    if not isinstance(value, dict):
        raise BadJson(f"{name} is a {type(value).__name__}, not an object")
    return value


def clean_caption(caption: Any, text_processor: Callable[[str], str]) -> str:
    """A caption as the text processor changes it. Raises BadCaption, NoCaption: an empty one teaches empty answers."""
    if caption is None:
        raise NoCaption("it has no caption")
    if not isinstance(caption, str):
        raise BadCaption(f"its caption is {short(repr(caption))}, not a text")
    if len(caption) > MAX_CAPTION:
        raise BadCaption(f"its caption has {len(caption):,} characters; at most {MAX_CAPTION:,} are taken")
    if not has_text(caption):
        raise NoCaption("its caption is empty")
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair; tokenizers stop at it
        raise BadCaption(f"its caption is no valid Unicode: {short(str(error))}") from None
    text = text_processor(caption)
    if not has_text(text):
        raise NoCaption(f"nothing is left of its caption {short(ascii(caption))}")
    return text


def read_image_file(path: Path, decode: Callable[[bytes, str], Any] = decode_image) -> Image.Image | Any:
    """Read a picture and `decode` it. Raises SampleFault, BrokenImage, HugeImage."""
    for attempt in itertools.count():
        try:
            return decode(path.read_bytes(), path.name)
        except OSError as error:
            if fault := pause_after(error, attempt, str(path)):
                raise fault from None
