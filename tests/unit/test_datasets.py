"""What files hold, and bad data: skipped, counted, named, and in the end refused."""

import io
import itertools
import json
import re
import tarfile
import traceback
from collections import Counter

import pytest
from made import good, noisy, picture, take, write_shard

from minigpt4.common.errors import DataError
from minigpt4.datasets import shards
from minigpt4.datasets import stream as stream_module
from minigpt4.datasets.image_text import ImageTextSource, read_filter_cap, read_photos
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import MixedLoader, SampleStream, make_loader
from minigpt4.runners.guards import DataMonitor

# -- bad samples --------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_urls(tmp_path, monkeypatch):
    """One good sample among every kind of bad one; a cut, an empty and a missing shard."""
    monkeypatch.setattr(shards, "BLOCK", 20)
    mixed = write_shard(
        tmp_path / "0.tar",
        [
            good("fine"),
            {"jpg": b"\xff\xd8 no picture", "json": b'{"caption": "x"}'},
            {"png": picture()[:45], "json": b'{"caption": "x"}'},
            {"png": picture()},
            {"json": b'{"caption": "x"}'},
            {"png": picture(), "json": b'{"caption": 7}'},
            {"png": picture(), "json": b'{"caption": "  "}'},
            {"png": picture(), "json": b'{"text": "x"}'},
            {"png": picture(), "json": b"[1]"},
            {"png": picture(), "json": b"{not json"},
        ],
    )
    cut = write_shard(tmp_path / "1.tar", [good(f"cut {i}") for i in range(4)])
    with open(cut, "rb+") as file:
        file.truncate(4000)
    empty = write_shard(tmp_path / "2.tar", [])
    return [mixed, cut, empty, str(tmp_path / "gone.tar")]


def test_bad_samples_are_skipped_and_reported(bad_urls):
    seen, why = Counter(), {}
    for sample in take(SampleStream(ShardSource(bad_urls, noisy, str), "laion"), 40):
        seen[sample["text_input"]] += 1
        for where, reason in sample["bad"]:
            why["/".join(where.split("/")[-1:])] = reason
    assert set(seen) >= {"fine"} and all(s == "fine" or s.startswith("cut") for s in seen)
    kinds = ["good", "broken", "half", "no json", "no image", "number", "blank", "no caption", "list", "no json text"]
    found = {kind: why.get(f"0.tar:{i:05}") for i, kind in enumerate(kinds)}
    assert found.pop("good") is None
    assert found.pop("broken").startswith("BrokenImage: its jpg: not an image")
    assert found.pop("half").startswith("BrokenImage: its png: ")
    assert found.pop("no json") == "NoCaption: no .json member"
    assert found.pop("no image") == "NoImage: no image among its members: json"
    assert found.pop("number") == "BadCaption: its caption is 7, not a text"
    assert found.pop("blank") == "NoCaption: its caption is empty"
    assert found.pop("no caption") == "NoCaption: it has no caption"
    assert found.pop("list") == "BadJson: its json is a list, not an object"
    assert found.pop("no json text").startswith("BadJson: its json cannot be parsed: ")
    assert not found
    assert why["2.tar"] == "EmptyShard: the shard holds no samples"
    assert why["gone.tar"].startswith("MissingFile")
    assert any(k.startswith("1.tar") for k in why)


def test_counts_names_and_the_end(bad_urls, tmp_path):
    monitor = DataMonitor(tmp_path, max_bad_share=0.5, rank=0)
    loader = make_loader(SampleStream(ShardSource(bad_urls, noisy, str), "laion"), 4, 0)
    with pytest.raises(DataError) as caught:
        for batch in loader:
            monitor.see("laion", batch)
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert len(lines) == monitor.faults["laion"].total()
    assert monitor.read["laion"] >= 200  # a few bad ones at the start end nothing
    assert all(set(line) == {"dataset", "sample", "why"} and line["dataset"] == "laion" for line in lines)
    share = monitor.faults["laion"].total() / monitor.read["laion"]
    assert str(caught.value).startswith(
        f"datasets.laion: {monitor.faults['laion'].total()} of {monitor.read['laion']} samples are bad ({share:.0%}; "
        "run.max_bad_share is 50%): "
    )
    assert "bad_samples.jsonl" in str(caught.value)
    assert (
        f"{monitor.faults['laion'].total()} of {monitor.read['laion']} samples of laion were bad" in monitor.summary()
    )


def test_counts_come_back(tmp_path):
    monitor = DataMonitor(tmp_path, max_bad_share=0.3, rank=1)
    monitor.see("a", {"bad": [("x", "broken")], "hopeless": False, "text_input": ["t"] * 3})
    again = DataMonitor(tmp_path, max_bad_share=0.3, rank=1)
    again.load_state_dict(monitor.state_dict())
    assert (again.read["a"], again.faults["a"].total()) == (4, 1)
    assert (tmp_path / "bad_samples_1.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_a_good_sample_ends_the_run(tmp_path, workers):
    """Also when the batch that would tell of it is never filled."""
    url = write_shard(tmp_path / "0.tar", [{"png": b"x", "json": b'{"caption": "x"}'}])
    monitor = DataMonitor(tmp_path, max_bad_share=1.0, rank=0)
    stream = SampleStream(ShardSource([url], noisy, str), "a")
    loader = MixedLoader({"a": make_loader(stream, 64, workers)}, {"a": 1}, 0, 0)
    with pytest.raises(DataError, match=r"datasets\.a: 500 of 500 samples are bad .*: 500 BrokenImage"):
        for name, batch in loader:
            monitor.see(name, batch)


# -- stage 2 and captioned photos ---------------------------------------------------------------------------------


@pytest.fixture
def align(tmp_path):
    """A stage-2 folder; align(annotations) writes its filter_cap.json."""
    (tmp_path / "image").mkdir()
    for i in range(4):
        (tmp_path / "image" / f"{i}.jpg").write_bytes(picture(i))

    def write(annotations) -> str:
        text = annotations if isinstance(annotations, str) else json.dumps({"annotations": annotations})
        (tmp_path / "filter_cap.json").write_text(text)
        return str(tmp_path)

    return write


def test_stage_2_pairs(align, tmp_path):
    pairs = read_filter_cap(align([{"image_id": "2", "caption": "Two. "}, {"image_id": 3, "caption": "Three."}]))
    assert pairs == [(tmp_path / "image/2.jpg", "Two. "), (tmp_path / "image/3.jpg", "Three.")]
    source = ImageTextSource(pairs, noisy, str.strip)
    texts = {s["text_input"]: s["image"][0].item() for s in take(SampleStream(source, "cc_sbu_align"), 4)}
    assert texts == {"Two.": 2, "Three.": 3}


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([{"image_id": "../secret", "caption": "x"}], r"image '\.\./secret\.jpg' lies outside"),
        ([{"image_id": "a/../../../x", "caption": "x"}], "lies outside"),
        ([{"image_id": "/etc/passwd", "caption": "x"}], r"image '/etc/passwd\.jpg' lies outside"),
        ([{"image_id": "1", "caption": "x"}, {"image_id": "2"}], r"annotations\[1\] needs image_id and caption"),
        ([{"image_id": "1", "caption": ["x"]}], r"annotations\[0\] needs image_id and caption \(a text\)"),
        (["1"], r"annotations\[0\] needs"),
        ("{", "its text cannot be parsed: Expecting property name"),
        ("[1]", "its text is a list, not an object"),
        ([], r'should be \{"annotations": \[\.\.\.\]\}, with an entry'),
        ('{"annotations": 5}', "should be"),
        ('{"notes": []}', "should be"),
    ],
)
def test_a_wrong_filter_cap_is_told_by_entry(align, annotations, words):
    with pytest.raises(DataError, match=rf"filter_cap\.json: .*{words}"):
        read_filter_cap(align(annotations))


def test_a_folder_without_filter_cap(tmp_path):
    with pytest.raises(DataError, match=r"has no filter_cap\.json; dataset/README_2_STAGE\.md describes the folder"):
        read_filter_cap(str(tmp_path))


def test_a_link_to_a_picture_is_the_users_own(align, tmp_path):
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere.png"
    elsewhere.write_bytes(picture(9))
    (tmp_path / "image" / "link.jpg").symlink_to(elsewhere)
    pairs = read_filter_cap(align([{"image_id": "link", "caption": "x"}]))
    assert ImageTextSource(pairs, noisy, str).decode(pairs[0])["image"][0].item() == 9


def test_a_missing_picture_is_a_bad_sample(align):
    pairs = read_filter_cap(align([{"image_id": "0", "caption": "x"}, {"image_id": "77", "caption": "y"}]))
    samples = take(SampleStream(ImageTextSource(pairs, noisy, str), "cc_sbu_align"), 5)
    assert {s["text_input"] for s in samples} == {"x"}
    where, why = next(b for s in samples for b in s["bad"])
    assert where.endswith("image/77.jpg") and why.startswith("MissingFile")


def test_a_sample_has_one_of_several_captions_by_its_place(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    texts = [f"Caption {i}." for i in range(5)]
    source = ImageTextSource([(tmp_path / "a.png", texts), (tmp_path / "a.png", "Alone.")], noisy, str)

    def said(seed, start=None):
        stream = SampleStream(source, "photos", seed)
        stream.place = start or {}
        return [(sample["text_input"], stream.place) for sample in itertools.islice(stream, 100)]

    first = said(1)
    drawn = [text for text, _ in first if text != "Alone."]
    assert len(drawn) == 50 and set(drawn) == set(texts)  # another one in each pass
    assert said(1) == first and said(2) != first
    assert said(1, first[39][1])[:60] == first[40:]  # resumed after sample 40


def test_photos_with_several_captions(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(picture())
    rows = [
        {"image": "a.png", "captions": ["One.", "Two."], "split": "train"},
        {"image": "b.png", "captions": ["Three."], "split": "val"},
    ]
    file = tmp_path / "photos.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert len(read_photos(str(file))) == 2
    pairs = read_photos(str(file), splits=["train"])
    assert pairs == [(tmp_path / "photos/a.png", ["One.", "Two."])]
    assert ImageTextSource(pairs, noisy, str.lower).decode(pairs[0])["text_input"] in ("one.", "two.")
    with pytest.raises(DataError, match="no photos of split tarin; it has train, val"):
        read_photos(str(file), splits=["train", "tarin"])
    with pytest.raises(DataError, match="should be a file of JSON lines"):
        read_photos(str(tmp_path))
    for row, words in (
        ({"image": "a.png"}, r"needs image \(a file name\) and captions \(a list of texts\); write"),
        ({"image": "a.png", "captions": "One."}, "needs image"),
        ({"image": 5, "captions": ["One."]}, "needs image"),
        ({"image": "../x.png", "captions": ["One."]}, r"photos\.jsonl: image '\.\./x\.png' lies outside"),
        (["a"], "the line is a list, not an object; write"),
    ):
        file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(row))
        with pytest.raises(DataError, match=words):
            read_photos(str(file))


def test_shards_as_other_tools_write_them(tmp_path, monkeypatch):
    """Upper-case suffixes, files of other kinds beside, members in folders."""
    monkeypatch.setattr(shards, "BLOCK", 2)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (
            ("a/0.PNG", picture(4)), ("a/0.txt", b"x"), ("a/0.json", b'{"caption": "Up"}'),
            ("b/0.webp", picture(5)), ("b/0.json", b'{"caption": "Low"}'),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples = take(SampleStream(ShardSource([str(tmp_path / "0.tar")], noisy, str), "laion"), 2)
    assert {s["text_input"]: s["image"][0].item() for s in samples} == {"Up": 4, "Low": 5}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_processor_ends_the_run_at_once(tmp_path, workers):
    """With its file and line; the next sample would meet it too."""

    def buggy(image):
        return image.no_such_method()

    shard = write_shard(tmp_path / "a.tar", [good(str(i)) for i in range(3)])
    loader = make_loader(SampleStream(ShardSource([shard], buggy, str), "a"), 2, workers)
    with pytest.raises(AttributeError, match="no_such_method") as caught:
        next(iter(loader))
    told = "".join(traceback.format_exception(caught.value))
    assert re.search(r"test_datasets\.py\", line \d+, in buggy", told)


def test_the_first_unknown_error_is_logged_with_its_traceback(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(stream_module.log, "propagate", True)

    def picky(image):
        raise KeyError("colour")

    shard = write_shard(tmp_path / "a.tar", [good(str(i)) for i in range(3)])
    samples = iter(SampleStream(ShardSource([shard], picky, str), "a"))
    sample = next(samples)
    assert {why for _, why in sample["bad"]} == {"KeyError: 'colour'"}
    (said,) = set(caplog.messages)  # a set: a logger that did not propagate before is captured twice
    assert said.startswith("datasets.a: the first") and "in picky" in caplog.text
