"""What can be wrong with data. The name of a fault's class stands in bad_samples.jsonl and in `minigpt4 data check`;
docs/data-faults.md says of each what happens."""

import errno
import http.client
import urllib.error
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from ..common.logger import log

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further try after a fault of the storage or the network
SHOWN = 120  # characters of a wrong value that a message quotes
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
    """A caption that is no text, is endless, or cannot be written as UTF-8."""


class BadJson(SampleFault):
    """A .json that is not JSON, not an object, or too large."""


class DuplicateMember(SampleFault):
    """Two members of one name: nobody can tell which caption belongs to which picture."""


class HugeMember(SampleFault):
    """A member beyond MAX_MEMBER bytes; it is not read into memory."""


class DamagedShard(SampleFault):
    """Not a tar, cut short, or with a wrong header: what stands before the damage is used."""


class EmptyShard(SampleFault):
    """A tar without a sample."""


class MissingFile(SampleFault):
    """A shard or picture that is not there, or not any more."""


class Unreadable(SampleFault):
    """A shard or picture that the system does not let us read, after every try."""


class PipeFailed(OSError):
    """The command behind a remote shard ended with an error, or sent nothing for too long."""


def is_transient(error: BaseException) -> bool:
    """Whether the same read may succeed later: an NFS hiccup, a lost connection, a busy server."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, (TimeoutError, ConnectionError, PipeFailed, http.client.HTTPException)):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT


def storage_fault(error: Exception) -> SampleFault:
    """The fault that an error of the file system or the network comes to."""
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (404, 410):
        return MissingFile("no such file" if error.strerror else short(str(error)))
    tries = f" ({len(PAUSES) + 1} tries)" if is_transient(error) else ""
    return Unreadable(f"{type(error).__name__} {short(str(error))}{tries}")


def wait_before(attempt: int, where: str, error: Exception) -> None:
    """The pause after try number `attempt` (from 0) failed."""
    log.warning("%s: %s; trying again in %g s", where, short(str(error)), PAUSES[attempt])
    sleep(PAUSES[attempt])


def with_retries(read: Callable[[], Answer], where: str) -> Answer:
    """`read()`, tried again after each fault that may pass.

    Raises:
        SampleFault: it did not pass, or is not of that kind.
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
    """At most SHOWN characters: what wrong data hold may be of any length."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
