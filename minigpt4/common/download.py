"""Weights named by URL: fetched once into a cache, resumed where a connection broke, then used as local files.

    https://host/eva_vit_g.pth                    the server's length is checked
    https://host/eva_vit_g.pth#sha256=64_digits   and the file's SHA-256

The cache is $MINIGPT4_CACHE, else $XDG_CACHE_HOME/minigpt4, else ~/.cache/minigpt4. A file that is there is used
without asking the server. Processes that want the same file wait for the one that fetches it.
"""

import http.client
import logging
import os
import re
import ssl
import time
from hashlib import sha256 as digest
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from .dist_utils import rank
from .errors import UserError
from .paths import resolve_path, sha256

log = logging.getLogger("minigpt4")
WEB = ("http://", "https://")
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # attempts in a row that bring nothing
BROKEN = (http.client.HTTPException, URLError, ConnectionError, TimeoutError, ssl.SSLError)  # other OSErrors: the disk


class DownloadError(UserError):
    """A URL that cannot be fetched, or does not give the file it should."""


def local_path(path: str) -> str:
    """The local file or folder that a config's path or URL stands for; a URL is fetched first, see `fetch`."""
    return str(fetch(path)) if path.startswith(WEB) else resolve_path(path)


def cached_path(url: str) -> Path:
    """Where the file of a URL lies once it is fetched. Raises DownloadError: the URL ends in another `#` part."""
    address, fragment = urldefrag(url)
    if not re.fullmatch(r"(sha256=[0-9a-fA-F]{64})?", fragment):
        raise DownloadError(f"{url}: after # goes sha256= and 64 hexadecimal digits, or nothing")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("MINIGPT4_CACHE") or os.path.join(cache, "minigpt4")
    name = unquote(Path(urlsplit(address).path).name) or "file"
    return Path(folder).expanduser() / digest(url.encode()).hexdigest()[:16] / name


def fetch(url: str) -> Path:
    """The file at `url`, from the cache or the network.
    Raises DownloadError: no such file, no network, a web page instead of weights, a full disk, another SHA-256."""
    target = cached_path(url)
    address, fragment = urldefrag(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not target.is_file():
                _download(address, target, fragment.removeprefix("sha256=").lower())
    except OSError as error:
        raise DownloadError(
            f"{address}: cannot be kept in {target.parent}: {error.strerror or error}; free space there, or set "
            "MINIGPT4_CACHE to a folder on another disk: what has come is kept and goes on"
        ) from error
    return target


def _download(url: str, target: Path, wanted: str) -> None:
    part, failures = target.with_name(f"{target.name}.part"), 0
    while True:
        had = _size(part)
        try:
            _attempt(url, part)
            break
        except BROKEN as error:
            if isinstance(error, HTTPError) and error.code == 416:  # nothing lies after what is there
                part.unlink()
            elif isinstance(error, HTTPError) and error.code not in (408, 429, 500, 502, 503, 504):
                login = "; it needs a login: fetch it by hand and write its path"
                what = {404: "; is the URL right?", 401: login, 403: login}.get(error.code, "")
                raise DownloadError(f"{url}: the server says {error.code} {error.reason}{what}") from None
            failures = 0 if _size(part) > had else failures + 1
            if failures == TRIES:
                kept = f"{_size(part):,} bytes are kept and go on from there next time"
                raise DownloadError(f"{url}: cannot be fetched: {error}; {kept}") from None
            time.sleep(min(0.2 * 2**failures, 5))
    found = sha256(part)
    if wanted and found != wanted:
        part.unlink()
        raise DownloadError(
            f"{url}: the file that came is not the expected one and was deleted\n"
            f"  SHA-256 found:    {found}\n  SHA-256 expected: {wanted}"
        )
    part.replace(target)
    part.with_suffix(".etag").unlink(missing_ok=True)
    log.info("%s is in %s (SHA-256 %s)", url, target, found)


def _attempt(url: str, part: Path) -> None:
    """Fetch what `part` lacks. It is only continued when the server says, by the ETag, that the file is the same.

    Raises:
        DownloadError: it is a web page.
        BROKEN: the connection ended before the file.
    """
    etag = part.with_suffix(".etag")
    have = _size(part) if etag.exists() else 0
    headers = {"User-Agent": "minigpt4", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag.read_text()}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DownloadError(f"{url}: a web page, not a weight file; write the URL of the page's download button, "
                                "or fetch the file by hand and write its path")  # fmt: skip
        start = have if response.status == 206 else 0
        etag.unlink(missing_ok=True)
        tag = response.headers.get("ETag") or ""
        if tag and not tag.startswith("W/"):  # a weak one does not promise the same bytes
            etag.write_text(tag)
        total = start + int(response.headers.get("Content-Length") or 0)
        # None shows the bar on a terminal only; the other processes of a run show none.
        bar = tqdm(desc=part.stem, total=total or None, initial=start, unit="B", unit_scale=True,
                   disable=True if rank() else None)  # fmt: skip
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := response.read1(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    if _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
