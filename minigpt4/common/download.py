"""Weights named by URL: fetched once into a cache, resumed where a connection broke, checked, then used as local files.

    https://host/eva_vit_g.pth                    the server's length is checked
    https://host/eva_vit_g.pth#sha256=64_digits   and the file's SHA-256

The cache is $MINIGPT4_CACHE, else $XDG_CACHE_HOME/minigpt4, else ~/.cache/minigpt4. A file that is there is used
without asking the server. Processes that want the same file wait for the one that fetches it.
"""

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from .dist_utils import rank
from .errors import UserError
from .file_system import flush, lock
from .paths import resolve_path, sha256

log = logging.getLogger("minigpt4")
WEB = ("http://", "https://")
CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # attempts in a row that bring nothing
BROKEN = (http.client.HTTPException, OSError)  # of a connection


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
    """Where the file of a URL lies once it is fetched. Raises DownloadError for a user without a home directory, if no
    variable names a folder."""
    url, _ = _split(url)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.path.expanduser(os.environ.get("MINIGPT4_CACHE") or os.path.join(cache, "minigpt4"))
    if folder.startswith("~"):
        raise DownloadError(f"{folder}: this user has no home directory to keep what is fetched from a URL; set "
                            "MINIGPT4_CACHE to a folder, or download the file and write its path")  # fmt: skip
    name = unquote(Path(urlsplit(url).path).name) or "file"
    return Path(folder) / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def fetch(url: str) -> Path:
    """The file at `url`, from the cache or the network.

    Raises:
        DownloadError: no such file, no network, a web page instead of weights, a full disk, another SHA-256.
    """
    address, wanted = _split(url)
    target = cached_path(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _beside(target, ".lock").open("w") as handle:
            if not lock(handle, target):
                log.info("waiting for another process that fetches %s", address)
                lock(handle, target, wait=True)
            if not target.is_file():
                _download(address, target, wanted)
        facts = _beside(target, ".json")
        known = json.loads(facts.read_text())["sha256"] if facts.exists() else None
    except OSError as error:  # a full disk raises this in the middle; what has come stays for the next time
        raise DownloadError(
            f"{address}: cannot be kept in {target.parent}: {error.strerror or error}; "
            + "free space there, or " * (error.errno in (errno.ENOSPC, errno.EDQUOT))
            + "set MINIGPT4_CACHE to a folder on another disk: what has come is kept and goes on"
        ) from error
    if wanted and known != wanted:
        raise DownloadError(f"{target} was fetched from {address} before and has another SHA-256, {known}; "
                            "delete it to fetch it again, or correct #sha256=")  # fmt: skip
    return target


def _split(url: str) -> tuple[str, str | None]:
    """(address, SHA-256 in hex or None). Raises DownloadError for a fragment that is none."""
    address, fragment = urldefrag(url)
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not match:
        raise DownloadError(f"{url}: after # goes sha256= and 64 hexadecimal digits, or nothing")
    return address, match[1].lower() if match else None


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _download(url: str, target: Path, wanted: str | None) -> None:
    part = _beside(target, ".part")  # what says whether it is still the same file is in .part.json
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
    _beside(target, ".json").write_text(json.dumps({"url": url, "sha256": found, "bytes": _size(part)}) + "\n")
    _beside(part, ".json").unlink(missing_ok=True)
    flush(part)
    os.replace(part, target)
    log.info("%s is in %s (SHA-256 %s)", url, target, found)


def _attempt(url: str, part: Path, bar: tqdm) -> None:
    """Fetch what `part` lacks. A part is only continued when the server says that the file is still the same one."""
    facts, have = _beside(part, ".json"), _size(part)
    validator = json.loads(facts.read_text())["validator"] if have and facts.exists() else None
    headers = {"User-Agent": "minigpt4", "Accept-Encoding": "identity"}
    if validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # nothing lies after `have`: complete, or another file
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
        if error.code in (408, 416, 429, 500, 502, 503, 504):
            raise _BrokenOff(f"HTTP {error.code} {error.reason}") from None
        login = "; it needs a login: fetch it by hand and write its path"
        what = {404: "; is the URL right?", 401: login, 403: login}.get(error.code, "")
        raise DownloadError(f"{url}: the server says {error.code} {error.reason}{what}") from None
    except BROKEN as error:
        raise _BrokenOff(f"no connection ({getattr(error, 'reason', error)})") from None
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DownloadError(
                f"{url}: a web page, not a weight file; write the URL that the page's download button leads to, or "
                "fetch the file by hand and write its path"
            )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak ETag does not promise the same bytes, so such a part is never continued.
        facts.write_text(json.dumps({"validator": "" if validator.startswith("W/") else validator}))
        _write(response, part, have if response.status == 206 else 0, bar)


def _write(response, part: Path, start: int, bar: tqdm) -> None:
    """The body of a response, from byte `start` of the file on -> `part`."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    room = shutil.disk_usage(part.parent).free
    if total and total - start > room:
        raise OSError(errno.ENOSPC, f"{total - start:,} bytes are needed and {room:,} are free")
    bar.total, bar.n = total, start
    bar.refresh()
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        while True:
            try:
                chunk = response.read1(CHUNK)
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
    return tqdm(desc=name, unit="B", unit_scale=True, disable=True if rank() else None)  # None: where there is one


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
