"""Opening shards: local files, `https://`, `s3://`, `gs://`, `hdfs://`, and `pipe:` with a command of the user's own.

A read that hangs is told with the shard's name; one that comes from elsewhere is given up after STALLED seconds.
"""

import errno
import hashlib
import io
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import urllib.request
import weakref
from pathlib import Path
from typing import BinaryIO

from ..common.file_system import flush
from ..common.logger import log
from ..common.paths import REMOTE
from .faults import PipeFailed
from .tar import check_head

SLOW = 30.0  # seconds of one read after which the log names the shard
STALLED = 120.0  # seconds without a byte after which a remote read is given up, and tried again
BUFFER = 2**18  # bytes of one read

# What streams an object of a store to its output. No shell: the URL is one argument.
COMMANDS = {
    "s3://": lambda url: ["aws", "s3", "cp", "--no-progress", url, "-"],
    "gs://": lambda url: ["gsutil", "cat", url],
    "hdfs://": lambda url: ["hdfs", "dfs", "-cat", url],
}


def open_shard(url: str, cache: str | Path | None = None) -> io.BufferedReader:
    """The bytes of a shard.

    Args:
        url: a file, or anything in `paths.REMOTE`. It comes from the config, never from data.
        cache: folder where a remote shard is kept whole once it was read; None: it is streamed each time.
    Raises:
        OSError: `faults.passing` says whether it may be tried again.
        DamagedShard: what came is no tar; it is not kept in the cache.
    """
    if not url.startswith(REMOTE):
        raw = io.FileIO(url)
    elif cache is None:
        raw = _remote(url)
    else:
        raw = _cached(url, Path(cache))
    return io.BufferedReader(Watched(raw, url), BUFFER)


def _remote(url: str) -> BinaryIO:
    if url.startswith(("http://", "https://")):
        return Download(url)
    command = next((make(url) for scheme, make in COMMANDS.items() if url.startswith(scheme)), None)
    return Command(command or url.removeprefix("pipe:"), url)


def _cached(url: str, cache: Path) -> BinaryIO:
    """The shard's file in the cache, fetched first if it is not there. It is whole: the name is given at the end."""
    tail = re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1])[-60:]
    file = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{tail}"
    if not file.exists():
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _remote(url) as source, temporary.open("wb") as target:
                shutil.copyfileobj(Watched(source, url), target, BUFFER)
            flush(temporary)
            check_head(temporary)  # a page that says "log in" must not stay
            temporary.replace(file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            log.warning("%s: cannot be kept there (%s): read without", cache, error.strerror)
            return _remote(url)
        finally:
            temporary.unlink(missing_ok=True)
    return io.FileIO(file)


class Watched(io.RawIOBase):
    """A stream that says in the log when one of its reads hangs."""

    def __init__(self, raw: BinaryIO, url: str):
        self.raw, self.url = raw, url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        alarm = threading.Timer(SLOW, log.warning, ("%s: nothing came for %g s; still waiting", self.url, SLOW))
        alarm.daemon = True
        alarm.start()
        try:
            return self.raw.readinto(buffer)
        finally:
            alarm.cancel()

    def close(self) -> None:
        self.raw.close()
        super().close()


class Download(io.RawIOBase):
    """An http(s) body. A connection that ends early is an error, not the end of the file."""

    def __init__(self, url: str):
        self.body = urllib.request.urlopen(url, timeout=STALLED)
        length = self.body.headers.get("Content-Length", "")
        self.left = int(length) if length.isdigit() else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.body.readinto(buffer)
        if self.left is not None:
            self.left -= count
            if not count and self.left > 0:
                raise ConnectionError(f"the connection ended {self.left:,} bytes early")
        return count

    def close(self) -> None:
        self.body.close()
        super().close()


_running: weakref.WeakSet = weakref.WeakSet()


def end_commands() -> None:
    """End every command that this process reads from."""
    for command in list(_running):
        command.close()


class Command(io.RawIOBase):
    """What a command writes to its output.

    Args:
        command: arguments, or the user's own shell line (`pipe:`).
    """

    def __init__(self, command: list[str] | str, url: str):
        self.url = url
        try:
            # A session of its own: its whole pipeline can be ended, and Ctrl-C leaves it to the loader that reads it.
            self.child = subprocess.Popen(
                command, shell=isinstance(command, str), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise FileNotFoundError(f"{command[0]}: no such command here; it is what reads {url}") from None
        _running.add(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not select.select([self.child.stdout], [], [], STALLED)[0]:
            raise PipeFailed(f"it sent nothing for {STALLED:g} s")
        count = self.child.stdout.readinto(buffer)
        if not count and self.child.wait(STALLED) == 127:
            raise FileNotFoundError(f"the shell finds no such command: {self.url}")
        if not count and self.child.returncode:
            raise PipeFailed(f"its command ended with code {self.child.returncode}")
        return count

    def close(self) -> None:
        if not self.closed:
            self.child.stdout.close()
            if self.child.poll() is None:
                os.killpg(self.child.pid, signal.SIGKILL)  # not waited for yet, so the group is there
                self.child.wait()
        super().close()
