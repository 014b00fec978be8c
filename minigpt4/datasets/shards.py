"""Captioned images in webdataset tar shards, as img2dataset writes them (LAION, CC+SBU)."""

import http.client
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..processors.image_processors import decode_image
from .decoding import clean_caption, decode_json
from .faults import (
    PAUSES,
    DamagedShard,
    DuplicateMember,
    EmptyShard,
    HugeMember,
    NoCaption,
    NoImage,
    SampleFault,
    Unreadable,
    passing,
    short,
    storage_fault,
    wait_before,
)
from .remote import open_shard
from .stream import seed_of
from .tar import MAX_MEMBER, members

BLOCK = 1000  # samples shuffled together, as the original's shuffle buffer
BLOCK_BYTES = 2**29  # a block is closed before 1,000 samples when it holds this much
PATIENCE = 20  # shards in a row that stay unreadable, after which the next ones are tried only once
PROTOCOL = (http.client.HTTPException,)  # errors of a connection that are no OSError
IMAGES = ("jpg", "jpeg", "png", "webp")


class ShardSource:
    """Shards drawn at random with replacement, without end; their samples shuffled in blocks of 1,000.

    Drawing with replacement is the original's sampling (webdataset's ResampledShards): with millions of images an epoch
    is a number of steps, not a pass. Blocks instead of a sliding buffer make the place in the data three numbers.

    Args:
        urls: shards, local or remote (`open_shard`).
        vis_processor, text_processor: PIL image -> (3, H, W); caption -> text.
        cache: folder that keeps remote shards.
    """

    def __init__(
        self, urls: Sequence[str], vis_processor: Callable, text_processor: Callable, cache: str | Path | None = None
    ):
        self.urls, self.cache = list(urls), cache
        self.vis_processor, self.text_processor = vis_processor, text_processor

    def iterate(self, stream: int, streams: int, seed: int, state: dict) -> Iterator[tuple[dict, str, dict]]:
        """See `Source`. State: `draw` and `offset` where the current block begins, `taken` samples of it."""
        draw, offset, taken = state.get("draw", 0), state.get("offset", 0), state.get("taken", 0)
        samples = self._samples(stream, seed, draw, offset)
        while True:
            block, start, held = [], (draw, offset), 0
            while len(block) < BLOCK and held < BLOCK_BYTES:
                draw, offset, where, raw = next(samples)
                block.append((where, raw))
                held += size_of(raw)
            order = list(range(len(block)))
            random.Random(seed_of(seed, stream, start)).shuffle(order)
            for i in range(taken, len(block)):
                where, raw = block[order[i]]
                yield {"draw": start[0], "offset": start[1], "taken": i + 1}, where, raw
            taken = 0

    def _samples(self, stream: int, seed: int, draw: int, offset: int) -> Iterator[tuple[int, int, str, Any]]:
        """(draw, place after the sample in its shard, where, raw), from sample `offset` of the `draw`-th shard on."""
        failed = 0
        while True:
            url, fault = self.urls[random.Random(seed_of("shard", seed, stream, draw)).randrange(len(self.urls))], None
            items = read_shard(url, self.cache, PAUSES if failed < PATIENCE else ())
            for place, (where, raw) in enumerate(items, start=1):
                fault = raw
                if place > offset:
                    yield draw, place, where, raw
            failed = failed + 1 if isinstance(fault, Unreadable) else 0
            draw, offset = draw + 1, 0

    def decode(self, raw: dict) -> dict:
        """See `Source`."""
        extension = next((e for e in IMAGES if e in raw), None)
        if extension is None:
            names = ", ".join(k for k in raw if not k.startswith("__"))
            raise NoImage(f"no image among its members: {short(names)}")
        if "json" not in raw:
            raise NoCaption("no .json member")
        caption = clean_caption(decode_json(raw["json"]).get("caption"), self.text_processor)
        image = decode_image(raw[extension], f"its {extension}")
        return {"image": self.vis_processor(image), "text_input": caption}


def read_shard(
    url: str, cache: str | Path | None = None, pauses: Sequence[float] = PAUSES
) -> Iterator[tuple[str, dict | SampleFault]]:
    """(where, raw sample) of one shard, undecoded. A fault comes as an exception in a sample's place, so that it is
    counted as a bad sample: a cut tar, or one without samples (a run of them must not spin unseen).

    A read that fails and may not the next time is tried again after each of `pauses`: the shard is opened anew, and the
    samples that came already are passed over, so that the order stays the same.

    A raw sample is {"__key__": key, suffix in lower case: bytes}.
    """
    came = 0
    for attempt in range(len(pauses) + 1):
        try:
            for place, item in enumerate(_samples_of(url, cache)):
                if place >= came:
                    came += 1
                    yield item
            return
        except (OSError, *PROTOCOL) as error:
            if attempt == len(pauses) or not passing(error):
                yield url, storage_fault(error)
                return
            wait_before(attempt, url, error)


def _samples_of(url: str, cache: str | Path | None) -> Iterator[tuple[str, dict | SampleFault]]:
    """Members that follow each other under one key are a sample. Raises what the storage raises."""
    sample: dict[str, Any] = {}
    empty = True
    try:
        with open_shard(url, cache) as stream:
            for name, content in members(stream):
                key, suffix = split_name(name)
                if not suffix:
                    continue
                if sample.get("__key__") != key:
                    if sample:
                        yield _whole(url, sample)
                    sample, empty = {"__key__": key}, False
                if suffix in sample:
                    sample["__fault__"] = DuplicateMember(f"two members .{short(suffix)}")
                elif isinstance(content, int):
                    sample["__fault__"] = HugeMember(
                        f".{short(suffix)} has {content:,} bytes; at most {MAX_MEMBER:,} are read"
                    )
                else:
                    sample[suffix] = content
    except DamagedShard as fault:
        if "json" in sample and any(e in sample for e in IMAGES):  # not the one that was cut
            yield _whole(url, sample)
        fault.__context__ = None  # with its traceback it would hold on to what was read
        yield url, fault.with_traceback(None)
        return
    if sample:
        yield _whole(url, sample)
    if empty:
        yield url, EmptyShard("the shard holds no samples")


def _whole(url: str, sample: dict) -> tuple[str, dict | SampleFault]:
    return f"{url}:{short(sample['__key__'])}", sample.get("__fault__", sample)


def split_name(name: str) -> tuple[str, str]:
    """`a/0001.seg.JPG` -> (`a/0001`, `seg.jpg`), as webdataset does; no suffix for what is not part of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or re.match(r"__[^/]*__($|/)", name):  # webdataset's own notes
        return name, ""
    return f"{folder}{slash}{stem}", suffix.lower()


def size_of(raw: dict | SampleFault) -> int:
    """Bytes of a raw sample."""
    return sum(map(len, raw.values())) if isinstance(raw, dict) else 0
