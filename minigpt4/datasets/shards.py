"""Captioned images in webdataset tar shards, as img2dataset writes them (LAION, CC+SBU)."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..processors.image_processors import decoder_of
from .faults import IMAGES, PAUSES, NoCaption, NoImage, Unreadable, clean_caption, decode_json, short
from .shard_files import read_shard
from .stream import seed_of

BLOCK = 1000  # samples shuffled together, as the original's shuffle buffer
BLOCK_BYTES = 2**29  # a block is closed before 1,000 samples when it holds this much
PATIENCE = 20  # shards in a row that stay unreadable, after which the next ones are tried only once


class ShardSource:
    """Shards drawn at random with replacement, without end (webdataset's ResampledShards, as in the original). Their
    samples are shuffled in blocks, not in a sliding buffer, so that the position in the data is three numbers."""

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
                held += sum(map(len, raw.values())) if isinstance(raw, dict) else 0
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
            url = random.Random(seed_of("shard", seed, stream, draw)).choice(self.urls)
            raw = None
            items = read_shard(url, self.cache, PAUSES if failed < PATIENCE else ())
            for place, (where, raw) in enumerate(items, start=1):
                if place > offset:
                    yield draw, place, where, raw
            failed = failed + 1 if isinstance(raw, Unreadable) else 0
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
        image = decoder_of(self.vis_processor)(raw[extension], f"its {extension}")
        return {"image": self.vis_processor(image), "text_input": caption}
