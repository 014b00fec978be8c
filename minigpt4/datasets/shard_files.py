"""One webdataset shard -> its raw samples. A shard is a tar on disk, at a URL, in an object store, or from a command.

webdataset runs the commands and groups members into samples. Its `tar_file_iterator` is not used: it takes a damaged
header for the end of the shard, and reads members of any size.
"""

import contextlib
import errno
import hashlib
import http.client
import itertools
import lzma
import os
import re
import select
import shutil
import signal
import subprocess
import tarfile
import urllib.request
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

import webdataset as wds
from webdataset.gopen import Pipe

from ..common.logger import log
from ..common.paths import REMOTE, whole_file
from . import faults
from .faults import IMAGES, MAX_MEMBER, SampleFault, short

STALLED = 120.0  # seconds without a byte after which a remote read is given up and tried again
BUFFER = 2**18  # bytes of one read
DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError)  # what tarfile raises on damaged files
NO_MEMBER = re.compile(r"__[^/]*__($|/)|(.*/)?\.[^/]*$")  # webdataset's own notes, and hidden files

# Commands that write an object of a store to their output. webdataset has none for s3:// and hdfs://.
COMMANDS = {"s3://": "aws s3 cp --no-progress {url} -", "gs://": "gsutil cat {url}", "hdfs://": "hdfs dfs -cat {url}"}


def read_shard(
    url: str, cache: str | Path | None = None, pauses: Sequence[float] = faults.PAUSES
) -> Iterator[tuple[str, dict | SampleFault]]:
    """Read one shard and yield (where, raw sample): {"__key__": key, suffix in lower case: bytes}. A fault (a shard
    that is cut, empty or unreadable, a member that is too large) is yielded in the place of a sample, and so counted.

    Args:
        url: a file, or anything in `paths.REMOTE`. It comes from the config, never from data.
        cache: folder that keeps remote shards; None: a remote shard is streamed each time.
        pauses: seconds before each further try. The samples that were yielded before are then skipped.
    """
    count = 0
    for attempt in itertools.count():
        try:
            for item in itertools.islice(_samples(url, cache), count, None):
                count += 1
                yield item
            return
        except (OSError, http.client.HTTPException) as error:
            if fault := faults.pause_after(error, attempt, url, pauses):
                yield url, fault
                return


def _samples(url: str, cache: str | Path | None) -> Iterator[tuple[str, dict | SampleFault]]:
    """The samples of a shard, then its damage if it has any. Errors of the storage are raised."""
    damage: list[SampleFault] = []
    repeated: list[Exception] = []  # group_by_keys reports a second member of one name in the same sample
    members, empty = _members(url, cache, damage), True
    for sample in wds.tariterators.group_by_keys(members, handler=lambda error: repeated.append(error) or True):
        fault = next((value for value in sample.values() if isinstance(value, SampleFault)), None)
        if repeated:
            fault = faults.DuplicateMember(f"two members {short(repeated[0].args[0].partition(': duplicate')[0])}")
            repeated.clear()
        empty = False
        del sample["__url__"]
        if not damage or ("json" in sample and any(name in sample for name in IMAGES)):  # else the cut was in it
            yield f"{url}:{short(sample['__key__'])}", fault or sample
    if damage or empty:
        yield url, damage[0] if damage else faults.EmptyShard("the shard holds no samples")


def _members(url: str, cache: str | Path | None, damage: list[SampleFault]) -> Iterator[dict]:
    """The files of a shard, as webdataset has them. A damaged place ends it, and appends a fault to `damage`."""
    try:
        with open_shard(url, cache) as stream:
            try:
                yield from _read_tar(stream, url)
            except DAMAGE:
                _check_complete(stream)
                raise
    except DAMAGE as error:
        damage.append(faults.DamagedShard(f"not a whole tar: {short(str(error))}"))


def _read_tar(stream: BinaryIO, url: str) -> Iterator[dict]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        for info in archive:
            if info.isreg() and not NO_MEMBER.match(info.name):
                if info.size > MAX_MEMBER:
                    suffix = short(info.name.rpartition(".")[2])
                    data = faults.HugeMember(f".{suffix} has {info.size:,} bytes; at most {MAX_MEMBER:,} are read")
                else:
                    data = archive.extractfile(info).read()
                yield {"fname": info.name, "data": data, "__url__": url}
            archive.members.clear()  # tarfile would keep all of them in memory


class _Header(tarfile.TarInfo):
    """Raises ReadError for a header that is damaged or missing. tarfile would take it for the end of the shard."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the end mark
            raise
        except tarfile.HeaderError as error:
            what = "no end mark, so it was cut off" if isinstance(error, tarfile.EmptyHeaderError) else error
            raise tarfile.ReadError(f"byte {archive.offset:,}: {what}") from None


def open_shard(url: str, cache: str | Path | None = None) -> BinaryIO:
    """Open a shard, see `read_shard`. Raises OSError, and tarfile.ReadError for a fetched file that is no tar."""
    if not url.startswith(REMOTE):
        return open(url, "rb", BUFFER)
    if cache and (file := _fetch(url, Path(cache))):
        return file.open("rb")
    if url.startswith("http"):  # webdataset runs curl, which does not tell a missing file from a busy server
        return urllib.request.urlopen(url, timeout=STALLED)
    return Command(url)


def _fetch(url: str, cache: Path) -> Path | None:
    """The file of a shard in the cache, fetched first if it is missing. None: the cache cannot be written to."""
    tail = re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1])[-60:]
    file = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{tail}"
    try:
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with open_shard(url) as source, whole_file(file) as part:
                with part.open("wb") as target:
                    shutil.copyfileobj(source, target, BUFFER)
                _check_complete(source)
                if not tarfile.is_tarfile(part):  # a login page must not stay
                    raise tarfile.ReadError(f"what {url} sent does not begin as a tar does")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.warning("%s: cannot be kept there (%s): read without", cache, error.strerror)
        return None
    return file


def _check_complete(stream: BinaryIO) -> None:
    """Raise ConnectionError when an HTTP body ended early; urllib takes that for the end of the file."""
    if getattr(stream, "length", None) and not stream.read(1):
        raise ConnectionError(f"the connection ended {stream.length:,} bytes early")


class Command(Pipe):
    """The output of the command behind a URL: webdataset's pipe, which also ends a command that hangs."""

    running: ClassVar[weakref.WeakSet] = weakref.WeakSet()  # commands of this process

    def __init__(self, url: str):
        self.url = url
        command = next((line.split() for scheme, line in COMMANDS.items() if url.startswith(scheme)), None)
        line = [part.format(url=url) for part in command] if command else url.removeprefix("pipe:")
        # A session of its own, so that the whole pipeline can be killed. Only the user's own `pipe:` needs a shell.
        options = {"shell": command is None, "stdin": subprocess.DEVNULL, "start_new_session": True}
        try:
            super().__init__(line, mode="rb", bufsize=0, **options)
        except FileNotFoundError:
            raise FileNotFoundError(f"{command[0]}: no such command here; it is what reads {url}") from None
        self.running.add(self)

    def read(self, size: int = -1) -> bytes:
        if not select.select([self.stream], [], [], STALLED)[0]:
            raise faults.PipeFailed(f"it sent nothing for {STALLED:g} s")
        data = self.stream.read(size)
        if not data and (code := self.proc.wait(STALLED)):
            if code == 127:
                raise FileNotFoundError(f"the shell finds no such command: {self.url}")
            raise faults.PipeFailed(f"its command ended with code {code}")
        return data

    def close(self) -> None:
        self.stream.close()
        if self.proc.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.proc.pid, signal.SIGKILL)
            self.proc.wait()
