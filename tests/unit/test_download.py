"""Weights by URL against a local server that knows ranges, and breaks off on demand."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from minigpt4.common import download
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import load_config
from minigpt4.common.download import DownloadError, cached_path, fetch, local_path

BODY = os.urandom(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked.append(self.headers.get("Range"))
        if self.path == "/page.pth":
            return self.answer(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        if self.path != "/dir/w.pth":
            return self.answer(404, b"")
        start, status, headers = 0, 200, {"ETag": site.etag} if site.etag else {}
        asked = self.headers.get("Range")
        if asked and site.ranges and self.headers.get("If-Range") == site.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(site.body):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(site.body)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
        self.answer(status, site.body[start:], headers, site.breaks.pop(0) if site.breaks else None)

    def answer(self, status, body, headers=None, breaks_after=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:breaks_after])
        self.close_connection = True

    def log_message(self, *_):
        pass


class Site:
    """What the server holds and how it behaves."""

    def __init__(self, address):
        self.url = f"http://127.0.0.1:{address[1]}/dir/w.pth"
        self.body, self.etag, self.ranges, self.breaks, self.asked = BODY, '"one"', True, [], []


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(server.server_address)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.site
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_and_needs_no_server_then(site):
    file = fetch(f"{site.url}#sha256={SHA}")
    assert file.read_bytes() == BODY and file.name == "w.pth"
    assert file == fetch(f"{site.url}#sha256={SHA}") == Path(local_path(f"{site.url}#sha256={SHA}"))
    assert site.asked == [None]
    assert {f.name for f in file.parent.iterdir()} == {"w.pth", "w.pth.lock"}


def test_a_broken_connection_goes_on_where_it_ended(site):
    site.breaks = [100_000, 50_000]
    assert fetch(f"{site.url}#sha256={SHA}").read_bytes() == BODY
    assert site.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_what_has_come_is_kept_for_the_next_call(site, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    site.breaks = [100_000, 0]
    with pytest.raises(DownloadError, match=r"ended after 100,000 of .*; 100,000 bytes are kept and go on"):
        fetch(site.url)
    assert fetch(site.url).read_bytes() == BODY
    assert site.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    "change", [{"etag": '"two"'}, {"ranges": False}, {"etag": None}], ids=["another file", "no ranges", "no etag"]
)
def test_a_part_of_another_file_is_not_continued(site, monkeypatch, change):
    monkeypatch.setattr(download, "TRIES", 1)
    site.breaks = [100_000, 0]
    with pytest.raises(DownloadError):
        fetch(site.url)
    site.body = BODY[::-1]
    vars(site).update(change)
    assert fetch(site.url).read_bytes() == BODY[::-1]


def test_a_whole_part_needs_no_more_bytes(site):
    part = cached_path(site.url).with_name("w.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    part.with_name("w.pth.etag").write_text(site.etag)
    assert fetch(site.url).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone.pth", r"the server says 404 .*; is the URL right\?"),
        ("/page.pth", r"page\.pth: a web page, not a weight file"),
        ("/dir/w.pth#sha256=" + "0" * 64, rf"(?s)not the expected one and was deleted.*found: +{SHA}.*expected: +0000"),
        ("/dir/w.pth#md5=1", r"after # goes sha256="),
    ],
)
def test_what_is_not_the_file_is_told_and_not_kept(site, path, message):
    url = site.url.removesuffix("/dir/w.pth") + path
    with pytest.raises(DownloadError, match=message):
        fetch(url)
    assert not [f for f in cached_path(site.url).parent.parent.rglob("*") if f.suffix in (".pth", ".part")]


def test_no_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        with pytest.raises(DownloadError, match=r"cannot be fetched: .*Connection refused"):
            fetch("http://127.0.0.1:9/w.pth")


def test_a_full_disk(site, monkeypatch):
    monkeypatch.setattr(download.tqdm, "update", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(DownloadError, match="No space left; free space there, or set MINIGPT4_CACHE"):
        fetch(site.url)


def test_several_processes_fetch_once(site):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(site.url).read_bytes() == BODY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4 and site.asked == [None]


def test_weights_are_read_through_a_url(site, tmp_path):
    torch.save({"model": {"llama_proj.bias": torch.arange(3.0)}}, tmp_path / "c.pth")
    site.body = (tmp_path / "c.pth").read_bytes()
    assert read_state(site.url)["llama_proj.bias"].tolist() == [0, 1, 2]


def test_a_config_may_name_weights_by_url(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {vit_ckpt: 'https://x/eva_vit_g.pth', q_former_model: 'https://x/b.pth', ckpt: 'https://x/c.pth',\n"
        "        llama_model: 'https://x/m.gguf', device_map: auto, max_memory: {0: 20GiB, cpu: 60GiB},\n"
        "        low_resource: 4bit}\n"
    )
    model = load_config(str(config), mode="chat").model
    assert model.vit_ckpt == "https://x/eva_vit_g.pth"
    assert (model.low_resource, model.max_memory) == ("4bit", {0: "20GiB", "cpu": "60GiB"})
