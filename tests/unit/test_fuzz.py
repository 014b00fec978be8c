"""Made-up bytes: whatever stands in a shard, a sample comes or a fault with a short reason; nothing raises or hangs."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import noisy, picture, take
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.datasets import shards
from minigpt4.datasets.faults import SampleFault
from minigpt4.datasets.image_text import read_filter_cap
from minigpt4.datasets.shard_files import read_shard
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import SampleStream
from minigpt4.processors.image_processors import Blip2ImageEval
from minigpt4.processors.text_processors import BlipCaption, has_text

pytestmark = pytest.mark.timeout(60)
few = settings(max_examples=60, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))
EVAL = Blip2ImageEval(image_size=8)


def file_of(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def tar_of(form: int) -> bytes:
    """Three good samples; the third has a name too long for a plain header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for i, name in enumerate(("a", "b", "n" * 150)):
            for suffix, content in (("png", picture(i)), ("json", json.dumps({"caption": f"no {i}"}).encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size, info.mtime = len(content), 1.5  # pax writes it as an extended header
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TARS = [tar_of(form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
IMAGES = [file_of(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")]


@st.composite
def hurt(draw, originals: list[bytes]) -> bytes:
    """One of these with bytes changed, cut out, doubled or put in."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        what = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        span = draw(st.integers(1, 600))
        if what == "change":
            new = draw(st.binary(min_size=1, max_size=12))
            content[at : at + len(new)] = new
        elif what == "cut":
            del content[at : at + span]
        elif what == "double":
            content[at:at] = content[at : at + span]
        elif what == "insert":
            content[at:at] = draw(st.binary(max_size=40))
        else:
            del content[at:]
    return bytes(content)


class Through:
    """A stream whose shard gives what is fuzzed, and then a good sample, so that the stream always has an answer."""

    def __init__(self, *raws):
        self.source = ShardSource([], EVAL, BlipCaption())
        self.raws = [*raws, {"__key__": "good", "png": picture(), "json": b'{"caption": "good"}'}]

    def iterate(self, stream, streams, seed, state):
        for i, raw in enumerate(self.raws):
            yield {"taken": i}, str(i), raw

    def decode(self, raw):
        return self.source.decode(raw)


def told(*raws) -> list[str]:
    """The reasons of the samples that were skipped; the others came out as they should."""
    samples = list(SampleStream(Through(*raws), "fuzz"))
    for sample in samples:
        assert sample["image"].shape == (3, 8, 8) and sample["image"].isfinite().all()
        sample["text_input"].encode()
    reasons = [why for sample in samples for _, why in sample["bad"]]
    assert samples[-1]["text_input"] == "good"
    assert len(samples) + len(reasons) == len(raws) + 1
    assert all(len(why) < 400 for why in reasons)
    return reasons


@few
@given(st.one_of(st.binary(max_size=300), hurt(IMAGES)))
def test_any_bytes_as_a_picture(content):
    for why in told({"__key__": "x", "jpg": content, "json": b'{"caption": "x"}'}):
        assert why.startswith(("BrokenImage: ", "HugeImage: "))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@few
@given(
    st.one_of(st.binary(max_size=80), hurt([b'{"caption": "x", "url": "y"}']), values.map(json.dumps).map(str.encode))
)
def test_any_bytes_as_json(content):
    for why in told({"__key__": "x", "png": picture(), "json": content}):
        assert why.startswith(("BadJson: ", "NoCaption: ", "BadCaption: "))


@few
@given(st.text(st.characters(), max_size=60) | st.text(st.characters(codec=None, categories=["Cs", "So", "Cc", "Mn"])))
def test_any_text_as_a_caption(caption):
    """Half surrogate pairs among them, which JSON may hold."""
    reasons = told({"__key__": "x", "png": picture(), "json": json.dumps({"caption": caption}).encode()})
    read = json.loads(json.dumps(caption))  # two halves that meet become a character
    valid = has_text(BlipCaption()(read)) and not any("\ud800" <= c <= "\udfff" for c in read)
    assert not reasons if valid else reasons[0].startswith(("BadCaption: ", "NoCaption: "))


@few
@given(content=hurt(TARS) | st.binary(max_size=2000))
def test_any_bytes_as_a_shard(tmp_path_factory, content):
    """Every shard comes to an end, gives at least one sample or fault, and the stream goes on to the next shard."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    path.write_bytes(content)
    items = list(read_shard(str(path)))
    assert items and len(items) < len(content) // 512 + 3
    assert all(isinstance(raw, (dict, SampleFault)) for _, raw in items)
    assert sum(len(v) for _, raw in items if isinstance(raw, dict) for v in raw.values()) < 2 * len(content) + 1000
    told(*(raw for _, raw in items))


def test_a_stream_of_hurt_shards_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 10)
    urls = []
    for i, content in enumerate(TARS):
        for cut in range(0, len(content), 1111):
            (tmp_path / f"{i}_{cut}.tar").write_bytes(content[:cut])
            urls.append(str(tmp_path / f"{i}_{cut}.tar"))
    samples = take(SampleStream(ShardSource(urls, noisy, str), "fuzz"), 50)
    assert {s["text_input"] for s in samples} <= {"no 0", "no 1", "no 2"}


@few
@given(
    st.one_of(
        st.binary(max_size=60),
        values.map(json.dumps).map(str.encode),
        st.lists(st.dictionaries(st.sampled_from(["image_id", "caption"]), values, max_size=2), max_size=3).map(
            lambda entries: json.dumps({"annotations": entries}).encode()
        ),
        st.text(max_size=30).map(
            lambda name: json.dumps({"annotations": [{"image_id": name, "caption": "x"}]}).encode()
        ),
        st.lists(st.sampled_from(["..", "/", "a", "\0", "~", "//", "\\"]), max_size=8).map(
            lambda parts: json.dumps({"annotations": [{"image_id": "".join(parts), "caption": "x"}]}).encode()
        ),
    )
)
def test_any_filter_cap(tmp_path_factory, content):
    """A list of pairs whose pictures lie in the folder, or a DataError."""
    folder = tmp_path_factory.getbasetemp() / "align"
    folder.mkdir(exist_ok=True)
    (folder / "filter_cap.json").write_bytes(content)
    try:
        pairs = read_filter_cap(str(folder))
    except DataError as error:
        assert str(error).startswith(str(folder))
    else:
        inside = (folder / "image").resolve()
        assert all(Path(str(path).replace("\0", "?")).resolve().is_relative_to(inside) for path, _ in pairs)
