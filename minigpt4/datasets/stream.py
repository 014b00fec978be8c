"""Endless, seeded, resumable streams of samples, and the batches made of them.

A stream is a function of (seed, rank, worker): the same config gives the same batches. Its position is a small state
in the checkpoint. To resume, a stream reads at most one shard again and decodes no sample twice.
"""

import itertools
import logging
import random
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from ..processors.image_processors import BrokenImage
from .faults import SampleFault
from .workers import check_sent, set_up_worker

log = logging.getLogger("minigpt4")
SLOW = 30.0  # seconds without a batch after which the log says so
HOPELESS = 500  # bad samples in a row after which a stream gives up
BUGS = (TypeError, NameError, AttributeError, ImportError, NotImplementedError, AssertionError)


class Source(Protocol):
    """A dataset: an order of raw samples, and a way to decode one. It may also have `__len__`, the size of a pass."""

    def iterate(self, stream: int, streams: int, seed: int, state: dict) -> Iterator[tuple[dict, str, Any]]:
        """Yield (state after this sample, its path, raw sample) without end, from `state` ({}: the start)."""

    def decode(self, raw: Any) -> dict:
        """Raw sample -> {"image": (3, H, W), "text_input": ...}. Raises on a bad one."""


def seed_of(*parts) -> int:
    """A 32-bit seed from anything printable, the same in every process and Python."""
    return zlib.crc32(":".join(map(str, parts)).encode())


class SampleStream(IterableDataset):
    """The samples of one loader worker of one process. Bad ones are skipped and reported with the next good one."""

    def __init__(self, source: Source, name: str, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.source, self.name, self.seed = source, name, seed
        self.rank, self.world_size = rank, world_size
        self.place: dict = {}
        self.began = 0  # see MixedLoader
        self.traced = False  # whether a traceback was logged

    def state_dict(self) -> dict:
        return {"place": self.place}

    def load_state_dict(self, state: dict) -> None:
        self.place = state["place"]

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        stream = self.rank * workers + number
        seed = seed_of(self.seed, "drawn", self.began) if self.began else self.seed
        bad: list[tuple[str, str]] = []
        for place, where, raw in self.source.iterate(stream, self.world_size * workers, seed, self.place):
            self.place = place
            try:
                if isinstance(raw, Exception):
                    raise raw
                # Augmentation draws from torch's RNG, seeded by the sample's position: it does not depend on the
                # process. The fork keeps the process's own RNG (num_workers 0) as it was.
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed_of(seed, stream, sorted(place.items())))
                    sample = self.source.decode(raw)
            except BUGS:  # of a processor or dataset of the user's own: the next sample would raise it too
                raise
            except Exception as error:  # whatever else is raised, the sample is at fault, not the run
                if not isinstance(error, (SampleFault, BrokenImage)) and not self.traced:
                    log.warning("datasets.%s: the first sample with an error of this kind: %s", self.name, where,
                                exc_info=error)  # fmt: skip
                    self.traced = True
                bad.append((where, f"{type(error).__name__}: {error}"))
                if len(bad) == HOPELESS:  # repeated without end, because a batch that is not full would be dropped
                    yield {"bad": bad, "hopeless": True}
                    yield from itertools.repeat({"bad": [], "hopeless": True})
                continue
            yield {**sample, "bad": bad}
            bad = []


def collate(samples: Sequence[dict]) -> dict:
    """Samples -> {"image": (B, 3, H, W), "text_input": list[B], "bad": [(where, why)], "hopeless": bool}. Any other key
    of the samples, e.g. "prompt", becomes a list[B], with None where a sample lacks it."""
    good = [s for s in samples if "image" in s]
    batch = {"bad": [b for s in samples for b in s["bad"]], "hopeless": any(s.get("hopeless") for s in samples)}
    if good:
        keys = {key: None for sample in good for key in sample if key not in batch}
        batch |= {key: [sample.get(key) for sample in good] for key in keys}
        batch["image"] = torch.stack(batch["image"])
    return batch


def make_loader(
    stream: SampleStream, batch_size: int, num_workers: int, collate_fn: Callable[[Sequence[dict]], dict] = collate
) -> StatefulDataLoader:
    """Batches of a stream. Its `state_dict()` is the position after the last batch that was taken, not prefetched."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # raised inside torchdata
        return StatefulDataLoader(
            stream, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_fn, persistent_workers=False,
            pin_memory=torch.cuda.is_available(), drop_last=True, worker_init_fn=set_up_worker,
        )  # fmt: skip


class MixedLoader:
    """Draws each batch from one of several loaders of a `SampleStream`, with probabilities in proportion to their
    ratios. The choice is a function of (seed, rank, number of the batch). Source: the original's MultiIterLoader.

    `began` batches were drawn before with another number of processes or workers; the streams then start anew, in
    another order.
    """

    def __init__(
        self, loaders: dict[str, StatefulDataLoader], ratios: dict[str, float], seed: int, rank: int, began: int = 0
    ):
        self.loaders, self.seed, self.rank = loaders, seed, rank
        self.names, self.weights = list(loaders), [ratios[name] for name in loaders]
        self._begin_after(began, began)
        self._iterators: dict[str, Iterator] = {}

    def state_dict(self) -> dict:
        loaders = {n: self.loaders[n].state_dict() for n in self._iterators}
        return {"drawn": self.drawn, "began": self.began, "loaders": loaders}

    def load_state_dict(self, state: dict) -> None:
        self._begin_after(state.get("began", 0), state["drawn"])
        for name, place in state["loaders"].items():
            if name in self.loaders:  # the config may have dropped it
                self.loaders[name].load_state_dict(place)
                # Now, not when it is next drawn: a checkpoint that is written before that must have its position too.
                self._iterators[name] = iter(self.loaders[name])

    def _begin_after(self, began: int, drawn: int) -> None:
        self.began, self.drawn = began, drawn
        for loader in self.loaders.values():
            loader.dataset.began = began

    def close(self) -> None:
        """End the loader processes now, not when Python collects this object."""
        self._iterators.clear()

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        while True:
            rng = random.Random(seed_of(self.seed, self.rank, self.drawn))
            name = rng.choices(self.names, self.weights)[0]
            if name not in self._iterators:
                self._iterators[name] = iter(self.loaders[name])
            self.drawn += 1
            told = ("datasets.%s: no batch came for %g s; still waiting", name, SLOW)
            alarm = threading.Timer(SLOW, log.warning, told)
            alarm.daemon = True
            alarm.start()
            try:
                batch = {**next(self._iterators[name]), "dataset": name}
            finally:
                alarm.cancel()
            check_sent(batch)
            yield name, batch


def permutation_stream(length: int, stream: int, streams: int, seed: int, state: dict) -> Iterator[tuple[dict, int]]:
    """Yield (state, index): every sample once in each pass, which the streams share, in a new order each time.

    State: `turn`, the number of the pass; `taken`, how many samples of its share this stream took.
    """
    turn, taken = state.get("turn", 0), state.get("taken", 0)
    while True:
        order = list(range(length))
        random.Random(seed_of(seed, turn)).shuffle(order)
        mine = order[stream::streams] or order[stream % length :][:1]  # fewer samples than streams: share one
        for i in range(taken, len(mine)):
            yield {"turn": turn, "taken": i + 1}, mine[i]
        turn, taken = turn + 1, 0
