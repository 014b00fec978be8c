"""Every fault of data in docs/data-faults.md: skipped and counted, tried again, or the end of the run."""

import errno
import gzip
import http.server
import io
import itertools
import json
import logging
import os
import pickle
import re
import struct
import tarfile
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from made import Evil, noisy, picture, take
from PIL import EpsImagePlugin, Image

from minigpt4.datasets import faults, shard_files, shards
from minigpt4.datasets import stream as stream_module
from minigpt4.datasets.faults import NoCaption
from minigpt4.datasets.image_text import ImageTextSource
from minigpt4.datasets.shard_files import read_shard
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import MixedLoader, SampleStream, make_loader
from minigpt4.processors.image_processors import (
    NOT_AN_IMAGE,
    Blip2ImageEval,
    Blip2ImageTrain,
    BrokenImage,
    HugeImage,
    open_image,
)
from minigpt4.processors.text_processors import BlipCaption, PlainText
from minigpt4.runners import guards
from minigpt4.runners.guards import DataMonitor

PROJECT = Path(__file__).parents[2]


def test_every_row_of_the_table_names_a_test_and_every_fault_has_a_row():
    text = (PROJECT / "docs" / "data-faults.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    code = {p.name: p.read_text() for p in (PROJECT / "tests").rglob("test_*.py")}
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^def {test}\(", code[f"{file}.py"], re.M), f"{file}.py has no {test}"
    classes = [c for c in vars(faults).values() if isinstance(c, type) and issubclass(c, faults.SampleFault)]
    for fault in [*classes[1:], BrokenImage, HugeImage]:
        assert f"`{fault.__name__}`" in text, fault


# -- helpers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch):
    """Pauses are noted, not slept."""
    slept = []
    monkeypatch.setattr(faults, "sleep", slept.append)
    return slept


def outcome(sample: dict, processor=noisy) -> str:
    """What becomes of one raw sample: its caption, or its fault as bad_samples.jsonl tells it."""
    source = ShardSource([], processor, str)
    try:
        return source.decode(sample)["text_input"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read(url, cache=None) -> list[str]:
    """`key`, or the fault, of everything that one shard gives."""
    return [
        raw["__key__"] if isinstance(raw, dict) else f"{type(raw).__name__}: {raw}" for _, raw in read_shard(url, cache)
    ]


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def caption(value) -> bytes:
    return json.dumps({"caption": value}).encode()


def tar_of(*files: tuple[str, bytes], form=tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pairs(count: int) -> list[tuple[str, bytes]]:
    return [f for i in range(count) for f in ((f"{i}.png", picture(i)), (f"{i}.json", caption(f"no {i}")))]


@pytest.fixture
def lay(tmp_path):
    """lay(bytes) -> the path of a shard that holds them."""
    count = itertools.count()

    def lay(content: bytes) -> str:
        path = tmp_path / f"shard{next(count)}.tar"
        path.write_bytes(content)
        return str(path)

    return lay


# -- pictures -----------------------------------------------------------------------------------------------------


def test_a_broken_image_is_skipped():
    jpeg = file_of(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    assert outcome({"jpg": jpeg, "json": caption("x")}) == "x"
    assert outcome({"jpg": jpeg[: len(jpeg) // 2], "json": caption("x")}).startswith(
        "BrokenImage: its jpg: the image is damaged: image file"
    )
    for content in (b"", b"\xff\xd8", b"<html>no</html>", jpeg[:30], b"\x89PNG\r\n\x1a\n" + bytes(99)):
        assert outcome({"jpg": content, "json": caption("x")}).startswith("BrokenImage: its jpg: ")
    assert outcome({"jpg": b"<html>", "json": caption("x")}) == f"BrokenImage: its jpg: {NOT_AN_IMAGE}"


def test_cmyk_16_bit_palette_and_alpha_are_read():
    red = [
        file_of(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"),
        file_of(Image.new("P", (32, 32)), "PNG"),
        file_of(Image.new("RGBA", (32, 32), (255, 0, 0, 255)), "PNG"),
        file_of(Image.new("RGBA", (32, 32), (255, 0, 0, 255)), "WEBP", lossless=True),
    ]
    palette = Image.new("P", (32, 32))
    palette.putpalette([255, 0, 0])
    red[1] = file_of(palette, "PNG")
    see = Blip2ImageEval(image_size=8, mean=[0] * 3, std=[1] * 3)
    source = ShardSource([], see, str)
    for content in red:
        seen = source.decode({"png": content, "json": caption("x")})["image"]
        assert torch.allclose(seen, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8), atol=0.03)
    deep = file_of(Image.frombytes("I;16", (4, 4), struct.pack("<16H", *[0x8000] * 16)), "PNG")
    assert source.decode({"png": deep, "json": caption("x")})["image"].mean().item() == pytest.approx(128 / 255)
    clear = file_of(Image.new("LA", (4, 4), (0, 0)), "PNG")
    assert source.decode({"png": clear, "json": caption("x")})["image"].min() == 1  # on white


def test_of_an_animation_the_first_frame_is_seen():
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (40, 200, 120)]
    for kind in ("GIF", "WEBP", "PNG"):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert Image.open(io.BytesIO(content)).n_frames == 3
        seen = ShardSource([], Blip2ImageEval(image_size=4, mean=[0] * 3, std=[1] * 3), str).decode(
            {"jpg": content, "json": caption("x")}
        )["image"]
        assert seen.mean().item() == pytest.approx(40 / 255, abs=0.01)


def test_one_pixel_is_a_picture():
    for size in ((1, 1), (1, 700)):
        image = file_of(Image.new("L", size, 255), "PNG")
        for processor in (Blip2ImageEval(image_size=8), Blip2ImageTrain(image_size=8)):
            out = ShardSource([], processor, str).decode({"png": image, "json": caption("x")})["image"]
            assert out.shape == (3, 8, 8) and out.isfinite().all()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a kilobyte that asks for any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("memory was asked for"))
    limit = "at most 89,478,485 pixels are decoded, of a JPEG 225,000,000"
    assert outcome({"png": bomb(30_000, 30_000), "json": caption("x")}) == f"HugeImage: its png: too large; {limit}"
    said = f"HugeImage: its png: too large: 12000 x 9000 pixels; {limit}"  # PIL alone would only warn
    assert outcome({"png": bomb(12_000, 9000), "json": caption("x")}) == said
    assert open_image(bomb(9000, 9000)).size == (9000, 9000)


def test_formats_that_start_programs_stay_closed(monkeypatch):
    """PIL hands EPS to Ghostscript, whatever the file is called."""
    content = file_of(Image.new("RGB", (8, 8)), "EPS")
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a) or Image.new("RGB", (8, 8)).im)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    assert ran  # it would
    ran.clear()
    assert outcome({"jpg": content, "json": caption("x")}) == f"BrokenImage: its jpg: {NOT_AN_IMAGE}"
    assert not ran


def test_broken_exif_does_not_cost_the_picture():
    for exif in (
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ):
        content = file_of(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG", exif=exif)
        assert outcome({"jpg": content, "json": caption("x")}, Blip2ImageEval(image_size=8)) == "x"


# -- captions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "x"}', "NoCaption: it has no caption"),
        (caption(None), "NoCaption: it has no caption"),
        (caption(" \n"), "NoCaption: its caption is empty"),
        (caption(7), "BadCaption: its caption is 7, not a text"),
        (caption(["a"]), "BadCaption: its caption is ['a'], not a text"),
        (caption(["a" * 9999]), f"BadCaption: its caption is ['{'a' * 118}... (10,003 characters), not a text"),
        (caption("a" * 20_001), "BadCaption: its caption has 20,001 characters; at most 20,000 are taken"),
        (b'{"caption": "half \\ud83d"}', "BadCaption: its caption is no valid Unicode: 'utf-8' codec can't encode"),
    ],
)
def test_a_caption_that_is_no_text_is_skipped(content, said):
    assert outcome({"png": picture(), "json": content}).startswith(said)
    assert outcome({"png": picture(), "json": caption("Grüße 🐈 \0 猫")}) == "Grüße 🐈 \0 猫"


INVISIBLE = ["\u200b", " \ufeff\n", "\u2060\u200d"]


@pytest.mark.parametrize(
    "processor, texts",
    [
        (BlipCaption(), ["...", "***", "( )", *INVISIBLE]),
        (BlipCaption(prompt="a photo of "), ["...", *INVISIBLE]),
        (PlainText(prompt="> "), INVISIBLE),
        (PlainText(max_words=3), INVISIBLE),
        (str.strip, INVISIBLE),
    ],
)
def test_a_caption_of_which_nothing_is_left_is_skipped(processor, texts, tmp_path):
    """It would teach the model to say nothing."""
    (tmp_path / "a.png").write_bytes(picture())
    shard, listed = ShardSource([], noisy, processor), ImageTextSource([], noisy, processor)
    for text in texts:
        for decode, raw in (
            (shard.decode, {"png": picture(), "json": caption(text)}),
            (listed.decode, (tmp_path / "a.png", text)),
            (listed.decode, (tmp_path / "a.png", ["a dog", text])),
        ):
            with pytest.raises(NoCaption, match="caption"):
                decode(raw)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "BadJson: its json cannot be parsed: Expecting value"),
        (b"{not json", "BadJson: its json cannot be parsed: Expecting property name"),
        (b'{"caption": "\xff"}', "BadJson: its json cannot be parsed: 'utf-8' codec"),
        (b"[" * 200_000, "BadJson: its json cannot be parsed: maximum recursion depth"),
        (b'{"caption": ' + b"9" * 5000 + b"}", "BadJson: its json cannot be parsed: Exceeds the limit"),
        (b"[1]", "BadJson: its json is a list, not an object"),
        (b'"x"', "BadJson: its json is a str, not an object"),
        (b"null", "BadJson: its json is a NoneType, not an object"),
    ],
)
def test_wrong_json_is_skipped(content, said):
    assert outcome({"png": picture(), "json": content}).startswith(said)


def test_a_sample_without_picture_or_json_is_skipped():
    assert outcome({"json": caption("x"), "txt": b"x"}) == "NoImage: no image among its members: json, txt"
    assert outcome({"png": picture()}) == "NoCaption: no .json member"


# -- shards -------------------------------------------------------------------------------------------------------


def test_a_cut_shard_gives_what_stands_before_the_cut(lay):
    whole = tar_of(*pairs(3))  # each member is a header and one block of 512 bytes
    assert read(lay(whole)) == ["0", "1", "2"]
    for cut, keys, why in (
        (2048 + 700, ["0"], "unexpected end of data"),  # within a picture
        (2048 + 300, ["0"], "byte 2,048: truncated header"),
        (2048 + 1024, ["0"], "byte 3,072: no end mark"),  # after a picture, before its caption
        (4096, ["0", "1"], "byte 4,096: no end mark"),  # after a whole sample
        (0, [], "byte 0: no end mark"),
    ):
        *found, fault = read(lay(whole[:cut]))
        assert found == keys and fault.startswith(f"DamagedShard: not a whole tar: {why}"), (cut, found, fault)
    wrong = bytearray(whole)
    wrong[2048 + 3] ^= 1  # one letter of a name: the header's checksum tells; Python's tarfile would call it the end
    assert read(lay(bytes(wrong))) == ["0", "DamagedShard: not a whole tar: byte 2,048: bad checksum"]
    assert read(lay(b"<html>Please log in</html>" * 99))[0].startswith("DamagedShard: not a whole tar: byte 0: ")


def test_packed_shards_are_read_and_their_damage_is_told(lay):
    packed = gzip.compress(tar_of(*pairs(40)))
    assert len(read(lay(packed))) == 40
    assert read(lay(packed[: len(packed) // 2]))[-1].startswith("DamagedShard: not a whole tar: ")
    hurt = bytearray(packed)
    hurt[len(packed) // 2] ^= 255
    assert read(lay(bytes(hurt)))[-1].startswith("DamagedShard: ")


def test_names_as_other_tools_write_them(lay):
    long = "folder/" + "n" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = tar_of(
            (f"{long}.PNG", picture()), (f"{long}.json", caption("x")), ("._x", b""), ("a/._x.png", b""),
            ("é.png", b""), ("__meta__/x.json", b""), ("plain", b""), ("a.b/c.seg.JPG", b"7"), ("./0.jpg", b""),
            form=form,
        )  # fmt: skip
        assert read(lay(content)) == [long, "é", "a.b/c", "./0"]
    (*_, (_, sample), _) = read_shard(lay(content))
    assert sample == {"__key__": "a.b/c", "seg.jpg": b"7"}


@pytest.mark.parametrize("suffix", ["pyd", "pth", "pickle", "npy", "cls", "png.gz"])
def test_members_stay_bytes(lay, tmp_path, suffix):
    """webdataset's own decoders unpickle some of these."""
    evil = pickle.dumps(Evil(tmp_path / "it_ran"))
    url = lay(tar_of(("0.png", picture()), ("0.json", caption("x")), (f"0.{suffix}", evil)))
    ((_, sample),) = read_shard(url)
    assert sample[suffix] == evil and outcome(sample) == "x"
    assert not (tmp_path / "it_ran").exists()


def test_a_sample_with_two_members_of_one_name_is_skipped(lay):
    twice = [("a.png", picture()), ("a.json", caption("x")), ("a.png", picture()), ("a.json", caption("y"))]
    assert read(lay(tar_of(*twice, *pairs(1)))) == ["DuplicateMember: two members a.png", "0"]


def test_a_huge_member_is_passed_over(lay, monkeypatch):
    monkeypatch.setattr(shard_files, "MAX_MEMBER", 1000)
    found = read(lay(tar_of(("a.png", bytes(5000)), ("a.json", caption("x")), *pairs(1))))
    assert found == ["HugeMember: .png has 5,000 bytes; at most 1,000 are read", "0"]


def test_an_empty_shard_is_a_bad_sample(lay):
    for content in (tar_of(), tar_of(("folder/README", b"x"), ("__index__", b"x"))):
        assert read(lay(content)) == ["EmptyShard: the shard holds no samples"]


def test_a_shard_that_vanishes_is_counted_and_the_others_go_on(lay, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 4)
    urls = [lay(tar_of(*pairs(2))), lay(tar_of(*pairs(3)))]
    stream = iter(SampleStream(ShardSource(urls, noisy, str), "laion"))
    take(stream, 10)
    Path(urls[0]).unlink()
    later = take(stream, 30)
    bad = [b for s in later for b in s["bad"]]
    assert {s["text_input"] for s in later[10:]} == {"no 0", "no 1", "no 2"}
    assert set(bad) == {(urls[0], "MissingFile: no such file")}


class Hiccup(io.FileIO):
    """A file whose reads fail now and then, after some bytes."""

    plan: list  # of errors and None, one for each time the file is opened

    def __init__(self, path):
        super().__init__(path)
        self.error = self.plan.pop(0) if self.plan else None

    def readinto(self, buffer):
        if self.error and self.tell() >= 12_000:
            raise OSError(self.error, "the server is away")
        return super().readinto(memoryview(buffer)[:2048])


def shaky_open(path, _mode, _size):
    return io.BufferedReader(Hiccup(path), 2048)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_nfs_hiccup_is_tried_again_and_changes_nothing(lay, monkeypatch, naps, number):
    url = lay(tar_of(*pairs(9)))
    wanted = read(url)
    monkeypatch.setattr(shard_files, "open", shaky_open, raising=False)
    Hiccup.plan = [number, number]
    assert read(url) == wanted
    assert naps == [1, 4]


def test_a_shard_that_stays_unreadable_is_counted(lay, monkeypatch, naps):
    url = lay(tar_of(*pairs(9)))
    monkeypatch.setattr(shard_files, "open", shaky_open, raising=False)
    Hiccup.plan = [errno.EIO] * 99
    *before, fault = read(url)
    assert before == ["0", "1", "2", "3"] and naps == [1, 4, 15]
    assert fault == "Unreadable: OSError [Errno 5] the server is away (4 tries)"
    Hiccup.plan = [errno.EACCES]
    assert read(url)[-1] == "Unreadable: PermissionError [Errno 13] the server is away"  # that does not pass
    assert naps == [1, 4, 15]


def test_after_twenty_unreadable_shards_there_are_no_more_pauses(monkeypatch, naps):
    def away(*_):
        raise OSError(errno.EIO, "the server is away")

    monkeypatch.setattr(shard_files, "open_shard", away)
    monkeypatch.setattr(shards, "BLOCK", 1)
    samples = iter(SampleStream(ShardSource(["a.tar"], noisy, str), "laion"))
    sample = next(samples)
    assert sample["hopeless"] and len(sample["bad"]) == 500  # the run ends: see test_datasets.py
    assert len(naps) == 3 * 20 and sum(naps) == 400


def test_a_picture_on_a_shaky_server_is_tried_again(tmp_path, monkeypatch, naps):
    (tmp_path / "a.png").write_bytes(picture(7))
    source = ImageTextSource([(tmp_path / "a.png", "x")], noisy, str)
    plain, plan = Path.read_bytes, [errno.ESTALE, errno.EIO]

    def shaky(path):
        if plan:
            raise OSError(plan.pop(), "the server is away")
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", shaky)
    assert source.decode(source.pairs[0])["image"][0].item() == 7
    assert naps == [1, 4]
    plan += [errno.EIO] * 4
    with pytest.raises(faults.Unreadable, match=r"the server is away \(4 tries\)"):
        source.decode(source.pairs[0])


# -- shards from elsewhere ----------------------------------------------------------------------------------------


def test_a_shard_from_a_pipe(lay, naps):
    url = lay(tar_of(*pairs(3)))
    assert read(f"pipe:cat {url}") == ["0", "1", "2"]
    assert read(f"pipe:gzip -c < {url} | cat") == ["0", "1", "2"]
    *found, fault = read(f"pipe:head -c 4000 {url}; exit 3")
    assert (found, fault) == (["0"], "Unreadable: PipeFailed its command ended with code 3 (4 tries)")
    assert naps == [1, 4, 15]
    *found, fault = read(f"pipe:cat {url} | head -c 3590")  # the shell tells of the last command only
    assert found == ["0"] and fault.startswith("DamagedShard: not a whole tar: unexpected end")
    assert read("pipe:no_such_command_at_all 2>/dev/null")[0].startswith("MissingFile: the shell finds no such command")


def test_a_batch_that_does_not_come_is_told(tmp_path, monkeypatch, caplog):
    """Whatever it waits for: here a picture."""
    monkeypatch.setattr(stream_module, "SLOW", 0.05)
    monkeypatch.setattr(logging.getLogger("minigpt4"), "propagate", True)
    (tmp_path / "a.png").write_bytes(picture())
    source = ImageTextSource([(tmp_path / "a.png", "x")], lambda image: time.sleep(0.2) or noisy(image), str)
    loader = MixedLoader({"align": make_loader(SampleStream(source, "align"), 1, 0)}, {"align": 1.0}, 0, 0)
    take(loader, 1)
    assert "datasets.align: no batch came for 0.05 s; still waiting" in caplog.messages


@pytest.mark.timeout(30)
def test_a_stalled_pipe_is_given_up_and_its_whole_pipeline_ended(lay, tmp_path, monkeypatch, naps):
    monkeypatch.setattr(shard_files, "STALLED", 0.1)
    still = tmp_path / "still_here"
    started = time.monotonic()
    assert read(f"pipe:(sleep 1; touch {still}; sleep 60) | cat") == [
        "Unreadable: PipeFailed it sent nothing for 0.1 s (4 tries)"
    ]
    assert time.monotonic() - started < 5
    threading.Event().wait(1.2)
    assert not still.exists()


def test_a_store_is_read_by_its_command_without_a_shell(lay, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "aws").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args\n/bin/cat {lay(tar_of(*pairs(2)))}\n')
    (tools / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    url = f"s3://bucket/a b;touch {tmp_path}/it_ran;.tar"
    assert read(url) == ["0", "1"]
    assert (tmp_path / "args").read_text().splitlines() == ["s3", "cp", "--no-progress", url, "-"]
    assert not (tmp_path / "it_ran").exists()
    assert read("gs://bucket/x.tar")[0].startswith("MissingFile: gsutil: no such command here; it is what reads gs://")


@pytest.fixture
def server():
    """server.answers: path -> what requests get: bytes, an error code, ("cut" or "stall", bytes); the last stays."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = self.server.answers[self.path]
            self.server.asked.append(self.path)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, int):
                self.send_error(answer)
                return
            how, body = answer if isinstance(answer, tuple) else ("whole", answer)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if how == "whole" else body[: len(body) // 2])
            if how == "stall":
                self.wfile.flush()
                self.server.free.wait(10)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.free = {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.free.set()
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(30)
def test_a_shard_over_http_is_tried_again(server, monkeypatch, naps):
    monkeypatch.setattr(shard_files, "STALLED", 0.3)
    whole = tar_of(*pairs(20))
    server.answers = {"/a.tar": [503, ("cut", whole), ("stall", whole), whole], "/gone.tar": [404], "/no.tar": [403]}
    assert read(f"{server.url}/a.tar") == [str(i) for i in range(20)]
    assert naps == [1, 4, 15] and len(server.asked) == 4
    assert read(f"{server.url}/gone.tar") == ["MissingFile: HTTP Error 404: Not Found"]
    assert read(f"{server.url}/no.tar") == ["Unreadable: HTTPError HTTP Error 403: Forbidden"]
    assert naps == [1, 4, 15]


def test_a_cached_shard_is_fetched_once_and_only_whole(server, tmp_path, naps):
    whole = tar_of(*pairs(20))
    server.answers = {"/x/a.tar?key=1": [("cut", whole), whole], "/b.tar": [b"<html>log in</html>" * 99, whole]}
    cache, keys = tmp_path / "cache", [str(i) for i in range(20)]
    for _ in range(3):
        assert read(f"{server.url}/x/a.tar?key=1", cache) == keys
    assert len(server.asked) == 2  # one was cut
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == whole and kept.name.endswith("_a.tar_key_1")
    assert read(f"{server.url}/b.tar", cache)[0].startswith("DamagedShard: not a whole tar: what http://")
    assert read(f"{server.url}/b.tar", cache) == keys  # what was no tar was not kept


def test_a_full_cache_is_read_past(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("minigpt4"), "propagate", True)
    server.answers = {"/a.tar": [tar_of(*pairs(2))]}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert read(f"{server.url}/a.tar", tmp_path / "cache") == ["0", "1"]
    assert "cache: cannot be kept there (No space left on device): read without" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


# -- shards and streams -------------------------------------------------------------------------------------------


def test_uneven_shards_and_fewer_shards_than_streams(lay, monkeypatch):
    """Each stream draws for itself: nobody waits for a shard of its own, and none is without."""
    monkeypatch.setattr(shards, "BLOCK", 10)
    urls = [lay(tar_of(*pairs(1))), lay(tar_of(*pairs(30)))]
    seen = []
    for rank in range(5):
        stream = SampleStream(ShardSource(urls, noisy, str), "laion", seed=3, rank=rank, world_size=5)
        seen.append([s["text_input"] for s in take(stream, 60)])
    assert len({tuple(s) for s in seen}) == 5
    assert all(len(set(s)) > 20 for s in seen)


def test_a_block_of_large_samples_is_closed_early_and_goes_on_exactly(lay, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 1000)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1000)
    source = ShardSource([lay(tar_of(*pairs(9)))], noisy, str)
    whole = [(p, w) for p, w, _ in take(source.iterate(0, 1, 0, {}), 40)]
    assert max(p["taken"] for p, _ in whole) == 11  # about a hundred bytes each
    for stop in (1, 5, 11, 12, 25):
        again = [(p, w) for p, w, _ in take(source.iterate(0, 1, 0, whole[stop - 1][0]), 40 - stop)]
        assert again == whole[stop:]


def test_a_bad_stream_does_not_grow(lay, tmp_path, monkeypatch):
    """150 faults to a good sample: what is held of them stays the same, and what is told is short."""
    monkeypatch.setattr(shards, "BLOCK", 50)
    members = []
    for i in range(150):
        members += [(f"a{i}.png", b"x" * 20_000), (f"a{i}.json", caption(["y" * 20_000]))]
    stream = iter(SampleStream(ShardSource([lay(tar_of(*members, *pairs(1)))], noisy, str), "laion"))
    monitor = DataMonitor(tmp_path, 1.0, 0)
    sizes = []
    tracemalloc.start()
    for sample in itertools.islice(stream, 8):
        assert all(len(where) + len(why) < 600 for where, why in sample["bad"])
        monitor.see("laion", {"bad": sample["bad"], "hopeless": False})
        sizes.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes[-1] - sizes[1] < 200_000
    assert peak < 3 * 50 * 41_000
    assert monitor.faults["laion"]["BadCaption"] > 800


# -- counting -----------------------------------------------------------------------------------------------------


def test_the_end_names_the_most_frequent_faults_of_the_whole_run(tmp_path):
    monitor = DataMonitor(tmp_path, max_bad_share=0.5, rank=0)
    for fault, count in (("BrokenImage", 90), ("NoCaption", 5), ("BadJson", 100)):
        bad = [("0.tar:1", f"{fault}: why")] * count
        monitor.see("laion", {"bad": bad, "hopeless": False})
    again = DataMonitor(tmp_path, max_bad_share=0.5, rank=0)
    again.load_state_dict(monitor.state_dict())
    assert again.summary() == "195 of 195 samples of laion were bad (100 BadJson, 90 BrokenImage, 5 NoCaption)"
    with pytest.raises(
        Exception, match=r"200 of 200 .*: 100 BadJson, 90 BrokenImage, 10 NoCaption, e\.g\. a:1 \(NoCap"
    ):
        again.see("laion", {"bad": [("a:1", "NoCaption: why")] * 5, "hopeless": False})


def test_a_full_disk_does_not_stop_the_counting(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(guards.log, "warning", lambda text, *values: said.append(text % values))
    (tmp_path / "bad_samples.jsonl").symlink_to("/dev/full")
    monitor = DataMonitor(tmp_path, max_bad_share=1.0, rank=0)
    for _ in range(3):
        monitor.see("laion", {"bad": [("x", "BrokenImage: y")], "hopeless": False, "text_input": ["t"]})
    assert monitor.faults["laion"].total() == 3
    assert sum("bad_samples.jsonl: OSError: [Errno 28] No space left" in line for line in said) == 1
