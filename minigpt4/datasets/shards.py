"""Captioned images in webdataset tar shards, as img2dataset writes them (LAION, CC+SBU)."""

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import webdataset as wds
from PIL import Image

from .stream import seed_of

BLOCK = 1000  # samples shuffled together, as the original's shuffle buffer
IMAGES = ("jpg", "jpeg", "png", "webp")


class ShardSource:
    """Shards drawn at random with replacement, without end; their samples shuffled in blocks of 1,000.

    Drawing with replacement is the original's sampling (webdataset's ResampledShards): with millions of images an epoch
    is a number of steps, not a pass. Blocks instead of a sliding buffer make the place in the data three numbers.

    Args:
        urls: shards, local or anything webdataset opens.
        vis_processor, text_processor: PIL image -> (3, H, W); caption -> text.
    """

    def __init__(self, urls: Sequence[str], vis_processor: Callable, text_processor: Callable):
        self.urls = list(urls)
        self.vis_processor, self.text_processor = vis_processor, text_processor

    def iterate(self, stream: int, streams: int, seed: int, state: dict) -> Iterator[tuple[dict, str, dict]]:
        """See `Source`. State: `draw` and `offset` where the current block begins, `taken` samples of it."""
        draw, offset, taken = state.get("draw", 0), state.get("offset", 0), state.get("taken", 0)
        samples = self._samples(stream, seed, draw, offset)
        while True:
            block, start = [], (draw, offset)
            while len(block) < BLOCK:
                draw, offset, where, raw = next(samples)
                block.append((where, raw))
            order = list(range(BLOCK))
            random.Random(seed_of(seed, stream, start)).shuffle(order)
            for i in range(taken, BLOCK):
                where, raw = block[order[i]]
                yield {"draw": start[0], "offset": start[1], "taken": i + 1}, where, raw
            taken = 0

    def _samples(self, stream: int, seed: int, draw: int, offset: int) -> Iterator[tuple[int, int, str, Any]]:
        """(draw, place after the sample in its shard, where, raw), from sample `offset` of the `draw`-th shard on."""
        while True:
            url = self.urls[random.Random(seed_of("shard", seed, stream, draw)).randrange(len(self.urls))]
            for place, (where, raw) in enumerate(read_shard(url), start=1):
                if place > offset:
                    yield draw, place, where, raw
            draw, offset = draw + 1, 0

    def decode(self, raw: dict) -> dict:
        """See `Source`."""
        extension = next((e for e in IMAGES if e in raw), None)
        if extension is None:
            raise ValueError(f"no image among its members: {', '.join(k for k in raw if not k.startswith('__'))}")
        if "json" not in raw:
            raise ValueError("no .json member")
        caption = json.loads(raw["json"]).get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"its caption is {caption!r}, not a text")
        image = Image.open(io.BytesIO(raw[extension]))
        return {"image": self.vis_processor(image), "text_input": self.text_processor(caption)}


def read_shard(url: str) -> Iterator[tuple[str, Any]]:
    """(where, raw sample) of one shard, undecoded. A fault of the shard comes as an exception in a sample's place,
    so that it is counted as a bad sample: a truncated tar, or one without samples (a run of them must not spin unseen).
    """
    faults: list[Exception] = []

    def note(fault: Exception) -> bool:
        faults.append(fault)
        return True  # webdataset: go on

    empty = True
    for sample in wds.DataPipeline(wds.SimpleShardList([url]), wds.tarfile_to_samples(handler=note)):
        empty = False
        yield f"{url}:{sample.get('__key__')}", sample
    if empty and not faults:
        faults.append(ValueError("the shard holds no samples"))
    for fault in faults:
        yield url, fault
