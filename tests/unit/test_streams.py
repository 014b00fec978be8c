"""Streams of samples: a function of their seed, resumable at any batch, and patient with bad data."""

import io
import itertools
import json
import tarfile
from collections import Counter

import pytest
import torch
import webdataset as wds
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.datasets import shards
from minigpt4.datasets.image_text import ImageTextSource, read_filter_cap, read_photos
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import MixedLoader, SampleStream, make_loader, permutation_stream
from minigpt4.runners.data_monitor import DataMonitor


def picture(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, samples) -> str:
    """samples: dicts of member suffix -> bytes."""
    with wds.TarWriter(str(path)) as tar:
        for i, sample in enumerate(samples):
            tar.write({"__key__": f"{i:05}", **sample})
    return str(path)


def good(caption: str, grey: int = 0) -> dict:
    return {"png": picture(grey), "json": json.dumps({"caption": caption}).encode()}


def noisy(image: Image.Image) -> torch.Tensor:
    """A processor that draws from torch's RNG, as the random crop does."""
    return torch.stack([torch.tensor(float(image.getpixel((0, 0))[0])), torch.rand(()), torch.rand(())])[:, None, None]


@pytest.fixture
def urls(tmp_path, monkeypatch):
    """Three shards of seven samples, in blocks of ten."""
    monkeypatch.setattr(shards, "BLOCK", 10)
    return [
        write_shard(tmp_path / f"{s}.tar", [good(f"s{s} n{n}", 10 * s + n) for n in range(7)]) for s in range(3)
    ]  # fmt: skip


@pytest.fixture
def stream(urls):
    return lambda name="laion", **place: SampleStream(ShardSource(urls, noisy, str.upper), name, **place)


def take(iterable, n: int) -> list:
    return list(itertools.islice(iterable, n))


def facts(batches) -> list:
    return [(b["text_input"], b["image"].flatten().tolist()) for b in batches]


# -- a function of the seed ---------------------------------------------------------------------------------------


def test_samples_are_decoded_and_named(stream):
    sample = next(iter(stream()))
    assert set(sample) == {"image", "text_input", "bad"}
    shard, number = sample["text_input"].removeprefix("S").split(" N")
    assert sample["image"][0].item() == 10 * int(shard) + int(number)  # this image belongs to this caption
    assert sample["bad"] == []


def test_the_same_place_gives_the_same_samples(stream):
    def run(**place):
        return [(s["text_input"], s["image"].tolist()) for s in take(stream(**place), 60)]

    first = run(seed=1, rank=0, world_size=2)
    torch.manual_seed(99)  # the process's own RNG plays no part
    assert run(seed=1, rank=0, world_size=2) == first
    texts = [t for t, _ in first]
    for other in ({"seed": 2, "rank": 0, "world_size": 2}, {"seed": 1, "rank": 1, "world_size": 2}):
        assert [t for t, _ in run(**other)] != texts
    assert len(set(texts)) == 21  # all shards are drawn in time
    assert texts[:7] != sorted(texts[:7])  # and shuffled


def test_the_processs_own_rng_stays_where_it_was(stream):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    take(stream(), 20)
    assert torch.equal(torch.rand(3), wanted)


def test_augmentation_differs_each_time_a_sample_comes(stream):
    seen = {}
    for s in take(stream(), 80):
        seen.setdefault(s["text_input"], []).append(s["image"][1].item())
    assert max(map(len, seen.values())) > 2
    assert all(len(set(noise)) == len(noise) for noise in seen.values())


def test_workers_and_ranks_see_different_streams(stream):
    def texts(workers, **place):
        return [b["text_input"] for b in take(make_loader(stream(**place), 5, workers), 8)]

    two = texts(2)
    assert two[::2] != two[1::2]  # batches come from the two workers in turn
    # Four streams, however they are laid out: 2 ranks x 2 workers, or 4 ranks.
    by_rank = [texts(0, rank=r, world_size=4) for r in range(4)]
    laid_out = [texts(2, rank=r, world_size=2) for r in range(2)]
    assert [t[w::2] for t in laid_out for w in range(2)] == [t[:4] for t in by_rank]
    assert len({json.dumps(t) for t in by_rank}) == 4


# -- going on -----------------------------------------------------------------------------------------------------


def through_file(state: dict, tmp_path) -> dict:
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_is_exact_at_every_batch(stream, tmp_path, workers):
    whole, states = [], []
    loader = make_loader(stream(), 3, workers)
    for batch in itertools.islice(loader, 9):  # 27 samples: over two ends of a block, and shards
        whole += facts([batch])
        states.append(through_file(loader.state_dict(), tmp_path))
    for done, state in enumerate(states, start=1):
        if workers and done % 3:
            continue
        again = make_loader(stream(), 3, workers)
        again.load_state_dict(state)
        assert facts(take(again, 9 - done)) == whole[done:]


def test_going_on_twice(stream):
    wanted = facts(take(make_loader(stream(), 3, 0), 9))
    got, state = [], None
    for _ in range(3):
        loader = make_loader(stream(), 3, 0)
        if state:
            loader.load_state_dict(state)
        got += facts(take(loader, 3))
        state = loader.state_dict()
    assert got == wanted


class Counting(ShardSource):
    decoded = 0

    def decode(self, raw):
        self.decoded += 1
        return super().decode(raw)


def test_going_on_decodes_nothing_twice(urls):
    def loader():
        source = Counting(urls, noisy, str)
        return source, make_loader(SampleStream(source, "laion"), 4, 0)

    source, first = loader()
    take(first, 6)
    assert source.decoded == 24
    state = first.state_dict()
    source, second = loader()
    second.load_state_dict(state)
    take(second, 2)
    assert source.decoded == 8


@pytest.mark.parametrize("stop", range(1, 12))
def test_going_on_past_faults_of_shards_is_exact(tmp_path, monkeypatch, stop):
    """Faults stand between the samples: a block may end right after one, and it must not come again."""
    monkeypatch.setattr(shards, "BLOCK", 3)
    whole = write_shard(tmp_path / "0.tar", [good("a"), good("b")])
    empty = write_shard(tmp_path / "1.tar", [])
    source = ShardSource([whole, empty, str(tmp_path / "gone.tar")], noisy, str)

    def raws(state):
        return [(place, where) for place, where, _ in take(source.iterate(0, 1, 3, state), 14)]

    everything = raws({})
    assert {w.split("/")[-1].split(":")[0] for _, w in everything} == {"0.tar", "1.tar", "gone.tar"}
    assert raws(everything[stop - 1][0])[: 14 - stop] == everything[stop:]


# -- mixing -------------------------------------------------------------------------------------------------------


def mixed(stream, seed=0, rank=0, ratios=(3, 1)):
    loaders = {n: make_loader(stream(n, seed=seed, rank=rank, world_size=2), 2, 0) for n in ("laion", "cc_sbu")}
    return MixedLoader(loaders, dict(zip(loaders, ratios, strict=True)), seed, rank)


def test_datasets_are_mixed_by_their_ratio(stream):
    names = Counter(name for name, _ in take(mixed(stream), 400))
    assert 270 < names["laion"] < 330
    order = [n for n, _ in take(mixed(stream), 30)]
    assert [n for n, _ in take(mixed(stream), 30)] == order
    assert [n for n, _ in take(mixed(stream, rank=1), 30)] != order
    assert {n for n, _ in take(mixed(stream, ratios=(0.001, 1e6)), 30)} == {"cc_sbu"}


@pytest.mark.parametrize("between", [1, 2, 5])
def test_a_mix_goes_on_exactly_and_forgets_no_dataset(stream, between):
    """Saved again soon after going on, a dataset that was not drawn in between keeps its place too."""
    wanted = [(n, *facts([b])) for n, b in take(mixed(stream), 40)]
    assert len({n for n, *_ in wanted[:10]}) == 2
    got, state = [], None
    while len(got) < 40:
        loader = mixed(stream)
        if state:
            loader.load_state_dict(state)
        got += [(n, *facts([b])) for n, b in take(loader, 10 if not got else between)]
        state = loader.state_dict()
    assert got[:40] == wanted


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
    assert found.pop("broken").startswith("UnidentifiedImageError")
    assert found.pop("half").startswith("OSError: ")
    assert found.pop("no json") == "ValueError: no .json member"
    assert found.pop("no image") == "ValueError: no image among its members: json"
    assert found.pop("number") == "ValueError: its caption is 7, not a text"
    assert found.pop("blank") == "ValueError: its caption is '  ', not a text"
    assert found.pop("no caption") == "ValueError: its caption is None, not a text"
    assert found.pop("list").startswith("AttributeError")
    assert found.pop("no json text").startswith("JSONDecodeError")
    assert not found
    assert why["2.tar"] == "ValueError: the shard holds no samples"
    assert why["gone.tar"].startswith("FileNotFoundError")
    assert any(k.startswith("1.tar") for k in why)


def test_counts_names_and_the_end(bad_urls, tmp_path):
    monitor = DataMonitor(tmp_path, max_bad_share=0.5, rank=0)
    loader = make_loader(SampleStream(ShardSource(bad_urls, noisy, str), "laion"), 4, 0)
    with pytest.raises(DataError) as caught:
        for batch in loader:
            monitor.see("laion", batch)
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert len(lines) == monitor.bad["laion"]
    assert monitor.read["laion"] >= 200  # a few bad ones at the start end nothing
    assert all(set(line) == {"dataset", "sample", "why"} and line["dataset"] == "laion" for line in lines)
    share = monitor.bad["laion"] / monitor.read["laion"]
    assert str(caught.value).startswith(
        f"datasets.laion: {monitor.bad['laion']} of {monitor.read['laion']} samples are bad ({share:.0%}; "
        "run.max_bad_share is 50%), most often: "
    )
    assert "bad_samples.jsonl" in str(caught.value)
    assert f"{monitor.bad['laion']} of {monitor.read['laion']} samples of laion were bad" in monitor.summary()


def test_counts_come_back(tmp_path):
    monitor = DataMonitor(tmp_path, max_bad_share=0.3, rank=1)
    monitor.see("a", {"bad": [("x", "broken")], "hopeless": False, "text_input": ["t"] * 3})
    again = DataMonitor(tmp_path, max_bad_share=0.3, rank=1)
    again.load_state_dict(monitor.state_dict())
    assert (again.read["a"], again.bad["a"]) == (4, 1)
    assert (tmp_path / "bad_samples_1.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_a_good_sample_ends_the_run(tmp_path, workers):
    """Also when the batch that would tell of it is never filled."""
    url = write_shard(tmp_path / "0.tar", [{"png": b"x", "json": b'{"caption": "x"}'}])
    monitor = DataMonitor(tmp_path, max_bad_share=1.0, rank=0)
    stream = SampleStream(ShardSource([url], noisy, str), "a")
    loader = MixedLoader({"a": make_loader(stream, 64, workers)}, {"a": 1}, 0, 0)
    with pytest.raises(DataError, match=r"datasets\.a: 500 of 500 samples are bad .*UnidentifiedImageError"):
        for name, batch in loader:
            monitor.see(name, batch)


# -- stage 2 and captioned photos ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "streams"), [(10, 1), (10, 2), (7, 3), (5, 4)])
def test_each_sample_once_a_pass(length, streams):
    passes = []
    for turn in range(3):
        seen = []
        for s in range(streams):
            mine = len(range(s, length, streams))
            steps = take(permutation_stream(length, s, streams, 0, {}), 3 * mine)
            seen += [i for state, i in steps if state["turn"] == turn]
        assert sorted(seen) == list(range(length))
        passes.append(seen)
    assert passes[0] != passes[1] != passes[2]


def test_fewer_samples_than_streams_are_shared():
    for s in range(5):
        assert len({i for _, i in take(permutation_stream(2, s, 5, 0, {}), 1)}) == 1


def test_a_permutation_goes_on_exactly():
    steps = take(permutation_stream(7, 1, 2, 3, {}), 20)
    for n, (state, _) in enumerate(steps[:-1]):
        assert take(permutation_stream(7, 1, 2, 3, state), 19 - n) == steps[n + 1 :]


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
        ([], "no annotations"),
        ("{", r'should be \{"annotations": \[\.\.\.\]\}'),
        ("[1]", "should be"),
        ('{"annotations": 5}', "should be"),
        ('{"notes": []}', "should be .*KeyError 'annotations'"),
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
    assert where.endswith("image/77.jpg") and why.startswith("FileNotFoundError")


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
    assert ImageTextSource(pairs, noisy, str.lower).decode(pairs[0])["text_input"] == ["one.", "two."]
    with pytest.raises(DataError, match="no photos of split tarin; it has train, val"):
        read_photos(str(file), splits=["train", "tarin"])
    with pytest.raises(DataError, match="should be a file of JSON lines"):
        read_photos(str(tmp_path))
    for row, words in (
        ({"image": "a.png"}, "needs image and captions: KeyError"),
        ({"image": "a.png", "captions": "One."}, "captions should be a list of texts"),
        ({"image": 5, "captions": ["One."]}, "image should be a file name; it is 5"),
        ({"image": "../x.png", "captions": ["One."]}, r"photos\.jsonl: image '\.\./x\.png' lies outside"),
        (["a"], "needs image and captions: TypeError"),
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
