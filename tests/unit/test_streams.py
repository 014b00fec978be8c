"""Streams of samples: a function of their seed, and resumable at any batch."""

import itertools
import json
from collections import Counter

import pytest
import torch
from made import good, noisy, take, write_shard

from minigpt4.datasets import shards
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import (
    MixedLoader,
    SampleStream,
    make_loader,
    permutation_stream,
)


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


# -- datasets that can be indexed ------------------------------------------------------------------------------------


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
    """Every stream gets one of the two in each pass, so that no process waits for a batch that never comes."""
    for s in range(5):
        steps = take(permutation_stream(2, s, 5, 0, {}), 20)
        assert [state["turn"] for state, _ in steps] == list(range(20))
        assert {i for _, i in steps} == {0, 1}


def test_a_permutation_goes_on_exactly():
    steps = take(permutation_stream(7, 1, 2, 3, {}), 20)
    for n, (state, _) in enumerate(steps[:-1]):
        assert take(permutation_stream(7, 1, 2, 3, state), 19 - n) == steps[n + 1 :]


# -- another number of processes or workers ---------------------------------------------------------------------------


def test_streams_that_begin_anew_have_another_order_and_go_on_exactly(stream):
    """Killed again after that, a run goes on where it was; a dataset that was not drawn in between too."""

    def loader(began=0):
        loaders = {name: make_loader(stream(name), 2, 0) for name in ("laion", "cc_sbu")}
        return MixedLoader(loaders, {"laion": 20, "cc_sbu": 1}, 0, 0, began)

    def texts(steps):
        return [(name, batch["text_input"]) for name, batch in steps]

    wanted = texts(take(loader(began=7), 40))
    assert wanted != texts(take(loader(), 47))[7:]
    assert [name for name, _ in wanted] == [name for name, _ in texts(take(loader(), 47))[7:]]
    first = loader(began=7)
    got = texts(take(first, 3))
    assert {name for name, _ in got} == {"laion"} and {name for name, _ in wanted} == {"laion", "cc_sbu"}
    again = loader()
    again.load_state_dict(first.state_dict())
    assert got + texts(take(again, 37)) == wanted
