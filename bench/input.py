"""The row of the input pipeline: shards of JPEGs -> batches of normalized pixels, in one worker."""

import functools
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import webdataset as wds
from PIL import Image
from torch import Tensor, nn
from torchvision import io as tv_io
from torchvision import transforms
from torchvision.transforms import v2

from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import SampleStream, make_loader
from minigpt4.processors.image_processors import BICUBIC, CLIP_MEAN, CLIP_STD, Blip2ImageTrain
from minigpt4.processors.text_processors import BlipCaption

from .timer import Line, Setting

BATCH, SCALE = 32, (0.5, 1.0)


@functools.cache
def _photo(number: int) -> bytes:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.zeros(1, 3, 256, 256)
    for side, strength in ((4, 90.0), (30, 40.0), (128, 12.0)):  # large and small things, and some noise
        noise = torch.randn(1, 3, side, side, generator=generator) * strength
        pixels += nn.functional.interpolate(noise, size=(256, 256), mode="bilinear")
    pixels = (pixels + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def photo(number: int = 0) -> io.BytesIO:
    """A made JPEG of 256 x 256, as img2dataset writes them for stage 1."""
    return io.BytesIO(_photo(number))


def ours(shard: str) -> Iterator:
    source = ShardSource([shard], Blip2ImageTrain(), BlipCaption())
    return iter(make_loader(SampleStream(source, "made"), BATCH, 0))


def with_pil(shard: str) -> Iterator:
    see = transforms.Compose([
        transforms.RandomResizedCrop(224, SCALE, interpolation=BICUBIC), transforms.ToTensor(),
        transforms.Normalize(CLIP_MEAN, CLIP_STD),
    ])  # fmt: skip
    samples = wds.WebDataset([shard] * 10_000, shardshuffle=False).shuffle(100).decode("pil")
    return iter(
        samples.to_tuple("jpg", "json").map_tuple(see, lambda meta: meta["caption"]).batched(BATCH, partial=False)
    )


def with_torchvision(shard: str) -> Iterator:
    see = v2.Compose([
        v2.RandomResizedCrop(224, SCALE, interpolation=v2.InterpolationMode.BICUBIC),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD),
    ])  # fmt: skip

    def decode(content: bytes) -> Tensor:
        return see(tv_io.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)))

    samples = wds.WebDataset([shard] * 10_000, shardshuffle=False).shuffle(100)
    return iter(samples.to_tuple("jpg", "json").map_tuple(decode, bytes.decode).batched(BATCH, partial=False))


def images(setting: Setting) -> list[Line]:
    """Images a second of a worker, without the forming of a block of shuffled samples."""
    with tempfile.TemporaryDirectory() as place:
        shard = str(Path(place, "00000.tar"))
        with wds.TarWriter(shard) as tar:
            for i in range(4 if setting.quick else 64):
                tar.write({"__key__": f"{i:05}", "jpg": photo(i).getvalue(), "json": {"caption": f"Photo {i}."}})
        made = {"ours": ours(shard), "PIL": with_pil(shard), "torchvision": with_torchvision(shard)}
        batches = 1 if setting.quick else 8

        def take(batch: Iterator) -> None:
            for one in itertools.islice(batch, batches):
                image = one["image"] if isinstance(one, dict) else one[0]
                assert image.shape == (BATCH, 3, 224, 224)

        best = setting.alternate({name: lambda batch=batch: take(batch) for name, batch in made.items()})
    rate = {name: BATCH * batches / seconds for name, seconds in best.items()}
    what, unit, note = "images of a worker", f"images/{setting.unit}", "JPEG of 256 x 256 -> 224 x 224"
    peers = {"PIL": "webdataset, PIL, torchvision", "torchvision": "webdataset, torchvision in uint8"}
    return [Line(what, unit, rate["ours"], rate[name], peer, "ours >= 1200", note) for name, peer in peers.items()]
