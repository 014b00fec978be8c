"""What can be wrong with data, and trying reads again.

`bad_samples.jsonl` and `minigpt4 data check` name a fault by its class. docs/data-faults.md tells what happens then.
"""

import errno
import http.client
import urllib.error
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from ..common.logger import log

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further try after a fault of the storage or the network
SHOWN = 120  # characters of a wrong value that a message shows
TRANSIENT = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOLINK", "ECONNRESET", "ECONNABORTED",
                 "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EPIPE")
    if hasattr(errno, name)
}  # fmt: skip
Answer = TypeVar("Answer")


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
    """A shard that is not a tar, is cut short or has a damaged header. The samples before the damage are used."""


class EmptyShard(SampleFault):
    """A tar without samples."""


class MissingFile(SampleFault):
    """A shard or picture that does not exist, or no longer."""


class Unreadable(SampleFault):
    """A shard or picture that could not be read in any of the tries."""


class PipeFailed(OSError):
    """The command behind a remote shard ended with an error, or sent nothing for too long."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same read may succeed later: an NFS error, a lost connection, a busy server."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, (TimeoutError, ConnectionError, PipeFailed, http.client.HTTPException)):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT


def storage_fault(error: Exception) -> SampleFault:
    """Return the fault to report for an error of the file system or the network."""
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (404, 410):
        return MissingFile("no such file" if error.strerror else short(str(error)))
    tries = f" ({len(PAUSES) + 1} tries)" if is_transient(error) else ""
    return Unreadable(f"{type(error).__name__} {short(str(error))}{tries}")


def wait_before(attempt: int, where: str, error: Exception) -> None:
    """Log a failed try and sleep before the next one. `attempt` is its number, from 0."""
    log.warning("%s: %s; trying again in %g s", where, short(str(error)), PAUSES[attempt])
    sleep(PAUSES[attempt])


def with_retries(read: Callable[[], Answer], where: str) -> Answer:
    """Return `read()`; try it again after each transient error.

    Args:
        where: the file, for the log.
    Raises:
        SampleFault: the last try failed too, or the error is not transient.
    """
    for attempt in range(len(PAUSES) + 1):
        try:
            return read()
        except OSError as error:
            if attempt == len(PAUSES) or not is_transient(error):
                raise storage_fault(error) from None
            wait_before(attempt, where, error)
    raise AssertionError


def short(text: str) -> str:
    """Return at most SHOWN characters of a text; wrong data may be of any length."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
