"""Weights named by URL: fetched once into a cache, resumed where a connection broke, checked, then used as local files.

    https://host/eva_vit_g.pth                    the server's length is checked
    https://host/eva_vit_g.pth#sha256=64_digits   and the file's SHA-256

The cache is $MINIGPT4_CACHE, else $XDG_CACHE_HOME/minigpt4, else ~/.cache/minigpt4. A file that is there is used
without asking the server. Processes that want the same file wait for the one that fetches it.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from .dist_utils import rank
from .errors import UserError
from .file_system import flush, replace
from .file_system import lock as lock_file
from .paths import resolve_path, sha256

log = logging.getLogger("minigpt4")
WEB = ("http://", "https://")
CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # attempts in a row that bring nothing
BROKEN = (URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)


class DownloadError(UserError):
    """A URL that cannot be fetched, or does not give the file it should."""


class _BrokenOff(Exception):
    """The connection ended before the file; another attempt may bring the rest."""


def local_path(path: str) -> str:
    """The local file or folder that a config's path or URL stands for; a URL is fetched first.

    Raises:
        DownloadError: see `fetch`.
    """
    return str(fetch(path)) if path.startswith(WEB) else resolve_path(path)


def cached_path(url: str) -> Path:
    """Where the file of a URL lies once it is fetched."""
    url, _ = _split(url)
    name = unquote(Path(urlsplit(url).path).name) or "file"
    return cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def cache_folder() -> Path:
    """Raises DownloadError for a user without a home directory, if no variable names a folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.path.expanduser(os.environ.get("MINIGPT4_CACHE") or os.path.join(cache, "minigpt4"))
    if folder.startswith("~"):
        raise DownloadError(f"{folder}: this user has no home directory to keep what is fetched from a URL; set "
                            "MINIGPT4_CACHE to a folder, or download the file and write its path")  # fmt: skip
    return Path(folder)


def fetch(url: str) -> Path:
    """The file at `url`, from the cache or the network.

    Raises:
        DownloadError: no such file, no network, a web page instead of weights, a full disk, another SHA-256.
    """
    address, wanted = _split(url)
    target = cached_path(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(target.name + ".lock"), address):
            if not target.is_file():
                _download(address, target, wanted)
            elif wanted and _facts(target).get("sha256") != wanted:
                raise DownloadError(
                    f"{target} was fetched from {address} before and has another SHA-256, {_facts(target)['sha256']}; "
                    "delete it to fetch it again, or correct #sha256="
                )
    except OSError as error:  # a full disk raises this in the middle; what has come stays for the next time
        raise DownloadError(
            f"{address}: cannot be kept in {target.parent}: {error.strerror or error}; "
            + "free space there, or " * (error.errno in (errno.ENOSPC, errno.EDQUOT))
            + "set MINIGPT4_CACHE to a folder on another disk: what has come is kept and goes on"
        ) from error
    return target


def _split(url: str) -> tuple[str, str | None]:
    """(address, SHA-256 in hex or None). Raises DownloadError for a fragment that is none."""
    address, fragment = urldefrag(url)
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not match:
        raise DownloadError(f"{url}: after # goes sha256= and 64 hexadecimal digits, or nothing")
    return address, match[1].lower() if match else None


def _download(url: str, target: Path, wanted: str | None) -> None:
    part = target.with_name(target.name + ".part")
    failures = 0
    with _bar(target.name) as bar:
        while True:
            had = _size(part)
            try:
                _attempt(url, part, bar)
                break
            except _BrokenOff as error:
                failures = 0 if _size(part) > had else failures + 1
                if failures == TRIES:
                    kept = f"; {_size(part):,} bytes are kept and go on from there next time" if _size(part) else ""
                    raise DownloadError(f"{url}: cannot be fetched: {error}{kept}") from None
                time.sleep(min(0.2 * 2**failures, 5))
    found = sha256(part)
    if wanted and found != wanted:
        part.unlink()
        raise DownloadError(
            f"{url}: the file that came is not the expected one and was deleted\n"
            f"  SHA-256 found:    {found}\n  SHA-256 expected: {wanted}"
        )
    facts = {"url": url, "sha256": found, "bytes": part.stat().st_size}
    _facts_file(target).write_text(json.dumps(facts, indent=2) + "\n")
    _facts_file(part).unlink(missing_ok=True)
    flush(part)
    replace(part, target)
    log.info("%s is in %s (SHA-256 %s)", url, target, found)


def _attempt(url: str, part: Path, bar: tqdm) -> None:
    """Fetch what `part` lacks. A part is only continued when the server says that the file is still the same one."""
    validator, have = _facts(part).get("validator"), _size(part)
    headers = {"User-Agent": "minigpt4", "Accept-Encoding": "identity"}
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # nothing lies after `have`: complete, or another file
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise _BrokenOff("the file at the server has changed") from None
        if error.code in (408, 429, 500, 502, 503, 504):
            raise _BrokenOff(f"HTTP {error.code} {error.reason}") from None
        what = {404: "; is the URL right?", 401: "; it needs a login: fetch it by hand and write its path",
                403: "; it needs a login: fetch it by hand and write its path"}.get(error.code, "")  # fmt: skip
        raise DownloadError(f"{url}: the server says {error.code} {error.reason}{what}") from None
    except BROKEN as error:
        raise _BrokenOff(f"no connection ({getattr(error, 'reason', error)})") from None
    with response:
        _write(url, response, part, have if response.status == 206 else 0, bar)


def _write(url: str, response, part: Path, start: int, bar: tqdm) -> None:
    """The body of a response, from byte `start` of the file on -> `part`."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise DownloadError(
            f"{url}: a web page, not a weight file; write the URL that the page's download button leads to, or fetch "
            "the file by hand and write its path"
        )
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    room = shutil.disk_usage(part.parent).free
    if total and total - start > room:
        raise OSError(28, f"{total - start:,} bytes are needed and {room:,} are free")
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak ETag does not promise the same bytes, so such a part is never continued.
    strong = validator if validator and not validator.startswith("W/") else None
    _facts_file(part).write_text(json.dumps({"validator": strong}))
    bar.total, bar.n = total, start
    bar.refresh()
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        while True:
            try:
                chunk = response.read(CHUNK)
            except http.client.IncompleteRead as error:
                chunk = error.partial
            except BROKEN as error:
                raise _BrokenOff(f"the connection broke ({error})") from None
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise _BrokenOff(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _bar(name: str) -> tqdm:
    """Shown on a terminal, by the first process of a run."""
    quiet = True if rank() else None  # None: only where there is a terminal
    return tqdm(desc=name, unit="B", unit_scale=True, disable=quiet)


@contextlib.contextmanager
def _alone(lock: Path, url: str) -> Iterator[None]:
    """One process at a time: the others wait, then find the file in its place."""
    with lock.open("w") as handle:
        if not lock_file(handle, lock):
            log.info("waiting for another process that fetches %s", url)
            lock_file(handle, lock, wait=True)
        yield


def _facts_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _facts(file: Path) -> dict:
    try:
        return json.loads(_facts_file(file).read_text())
    except (OSError, ValueError):
        return {}


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
