"""Pictures as people have them: damaged ones cost only themselves, other ranges than 0..255, HEIC, very large ones."""

import argparse
import io
import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import damaged_avif, picture, take
from PIL import Image, ImageFile

from minigpt4 import cli
from minigpt4.common.schema import Config
from minigpt4.conversation.chat import Chat, ImageError, read_image
from minigpt4.convert.hf.files import processing_minigpt4
from minigpt4.curation import run as curation
from minigpt4.datasets.image_text import ImageTextSource
from minigpt4.datasets.shards import ShardSource
from minigpt4.datasets.stream import SampleStream
from minigpt4.evaluation.page import thumbnail
from minigpt4.processors import image_processors
from minigpt4.processors.image_processors import Blip2ImageEval, HugeImage, decode_image, open_image, to_rgb
from minigpt4.serve import describe
from minigpt4.tasks.extract_features import FeatureFile


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# -- damaged ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["avif", "a decoder that raises an IndexError"])
def folder(request, tmp_path, monkeypatch):
    """photos/ with a.png, a damaged b.avif and c.png; the second time any decoder's error stands for the AVIF's."""
    (tmp_path / "photos").mkdir()
    for name, content in {"a.png": picture(10), "b.avif": damaged_avif(), "c.png": picture(30)}.items():
        (tmp_path / "photos" / name).write_bytes(content)
    if request.param != "avif":
        original = ImageFile.ImageFile.load

        def load(image):
            if image.size == (64, 64):
                raise IndexError("index out of range")
            return original(image)

        monkeypatch.setattr("PIL.AvifImagePlugin.AvifImageFile.load", load)
    return tmp_path / "photos"


def test_a_chat_names_the_damaged_picture(folder, tiny_model):
    with pytest.raises(ImageError, match=r"b\.avif: the image is damaged: (Failed to decode|index)"):
        read_image(folder / "b.avif")
    chat = Chat(tiny_model, Blip2ImageEval(image_size=56))
    with pytest.raises(ImageError, match="the image is damaged"):  # a PIL image that nobody has decoded yet
        chat.upload_img(Image.open(folder / "b.avif"), chat.new_conversation())


def test_describe_goes_on_with_the_next_picture(folder, tiny_model, capsys):
    parser = argparse.ArgumentParser()
    describe.add_arguments(parser)
    args = parser.parse_args([str(folder), "--max-new-tokens", "3", "--json"])
    args.images = [name for path in args.images for name in describe.pictures_of(path)]
    assert describe.describe(Chat(tiny_model, Blip2ImageEval(image_size=56)), args) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(folder / "a.png"), str(folder / "c.png")]
    assert err.count("error: ") == 1 and "b.avif: the image is damaged" in err


def test_training_counts_it(folder):
    pairs = [(path, "a caption") for path in sorted(folder.iterdir())]
    samples = take(SampleStream(ImageTextSource(pairs, Blip2ImageEval(8), str), "photos"), 6)
    bad = [b for sample in samples for b in sample["bad"]]
    assert {(where[-6:], why.split(":")[0]) for where, why in bad} == {("b.avif", "BrokenImage")}


def test_features_of_it_are_zeros(folder):
    source = ImageTextSource([(path, "x") for path in sorted(folder.iterdir())], Blip2ImageEval(8), str)
    crops = FeatureFile("", folder / "f.npy", {"crops": 2}, source, None, 8, 0)
    assert [why.split(":")[0] for _, why in (crops[i] for i in range(3))] == ["", "BrokenImage", ""]


def test_curate_leaves_it_out(folder, tmp_path, monkeypatch, capsys):
    lines = [{"image": path.name, "captions": ["A dog runs on the green grass."]} for path in sorted(folder.iterdir())]
    (tmp_path / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))

    class Talker:
        model = SimpleNamespace(token_ids=str.split)

        def answer_batch(self, images, questions, **options):
            return ["A dog runs on the green grass." for image in map(read_image, images)]

    monkeypatch.setattr(curation, "chat_for", lambda config, device: Talker())
    monkeypatch.setattr(curation, "load_config", lambda *a, **k: Config())
    words = ["--data", str(tmp_path / "photos.jsonl"), "--out", str(tmp_path / "pairs"), "--no-continue"]
    assert cli.main(["curate", *words]) == 0
    pairs = json.loads((tmp_path / "pairs/filter_cap.json").read_text())["annotations"]
    assert [pair["image_id"] for pair in pairs] == ["a", "c"]
    out, err = capsys.readouterr()
    assert "dropped: picture cannot be read 1" in " ".join(out.split())
    assert "b.avif: the image is damaged" in err
    assert thumbnail(folder / "b.avif") == "data:,"


# -- ranges -------------------------------------------------------------------------------------------------------


def grey(values, dtype) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


def pixels(image: Image.Image, kind: str) -> list[int]:
    return np.asarray(decode_image(file_of(image, kind), "x"))[0, :, 0].tolist()


@pytest.mark.parametrize(
    "values, dtype, kind, expected",
    [
        ([0.0, 0.25, 0.5, 1.0], np.float32, "TIFF", [0, 64, 128, 255]),
        ([0.0, 64.0, 200.0, 255.0], np.float32, "TIFF", [0, 64, 200, 255]),
        ([-0.1, 0.0, 0.4, 0.9], np.float32, "TIFF", [0, 26, 128, 255]),  # another range: its own
        ([0.0, 3.0, 6.0, 12.0], np.float32, "TIFF", [0, 64, 128, 255]),
        ([0, 64, 200, 255], np.int32, "TIFF", [0, 64, 200, 255]),
        ([0, 256, 32768, 65535], np.int32, "TIFF", [0, 1, 128, 255]),
        ([0, 2**20, 2**21, 2**22], np.int32, "TIFF", [0, 64, 128, 255]),
        ([-10, 0, 300, 500], np.int32, "TIFF", [0, 5, 155, 255]),
        ([0, 256, 32768, 65535], np.uint16, "TIFF", [0, 1, 128, 255]),
        ([0, 100, 200, 255], np.uint16, "PNG", [0, 0, 0, 0]),  # 16 bits by its header: a dark picture stays dark
    ],
)
def test_pixels_of_any_range_are_seen(values, dtype, kind, expected):
    assert pixels(grey(values, dtype), kind) == expected
    opened = Image.open(io.BytesIO(file_of(grey(values, dtype), kind)))
    assert np.asarray(processing_minigpt4.to_rgb(opened))[0, :, 0].tolist() == expected  # an exported model's own


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(image_processors.BrokenImage, match="x: its pixels hold NaN or infinity"):
        pixels(grey([0.0, float("nan")], np.float32), "TIFF")


def test_a_float_picture_is_seen_in_chat_and_in_training(tmp_path):
    image = grey([0.5, 1.0], np.float32)
    (tmp_path / "half.tif").write_bytes(file_of(image, "TIFF"))
    see = Blip2ImageEval(image_size=2, mean=[0] * 3, std=[1] * 3)
    half = see(Image.fromarray(np.array([[128, 255]], dtype=np.uint8)))
    assert torch.allclose(see(read_image(tmp_path / "half.tif")), half)
    assert torch.allclose(see(image), half)
    source = ImageTextSource([], see, str)
    assert torch.allclose(source.decode((tmp_path / "half.tif", "x"))["image"], half)


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "P", "RGBa", "RGBA"])
def test_transparency_of_every_mode_lies_on_white(mode):
    image = Image.new(mode, (2, 2), 0)
    if mode == "P":
        image.putpalette([40, 40, 40, 0], "RGBA")
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


# -- HEIC, very large -----------------------------------------------------------------------------------------------

HEIC = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heicmiaf" + bytes(40)


def test_heic_is_named_and_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"a\.heic: HEIC: convert it to JPEG, or install pillow-heif"):
        read_image(tmp_path / "a.heic")
    with pytest.raises(image_processors.BrokenImage, match="its jpg: HEIC: convert"):  # under a wrong name
        ShardSource([], None, str).decode({"jpg": HEIC, "json": b'{"caption": "x"}'})

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode = (3, 2), "RGB"

        def load(self):
            self.im = Image.core.fill("RGB", (3, 2), (200, 30, 30))
            return Image.Image.load(self)

    def register():
        Image.register_open("HEIF", Heif, lambda prefix: prefix[4:8] == b"ftyp")

    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert read_image(tmp_path / "a.heic").getpixel((1, 1)) == (200, 30, 30)
    assert open_image(file_of(Image.new("RGB", (8, 8)), "AVIF")).format == "AVIF"


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])  # MPO: a phone's JPEG with a second picture behind it
def test_a_large_jpeg_is_decoded_at_half_scale(kind, monkeypatch):
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if kind == "MPO" else {}
    content = file_of(Image.new("RGB", (640, 480), (200, 30, 30)), kind, **more)
    monkeypatch.setattr(image_processors, "MAX_PIXELS", 300_000)
    seen = decode_image(content, "photo.jpg")
    assert seen.size == (320, 240) and abs(seen.getpixel((100, 100))[0] - 200) < 4
    with pytest.raises(HugeImage, match="640 x 480 pixels; at most"):
        decode_image(file_of(Image.new("RGB", (640, 480)), "PNG"), "photo.png")


def test_the_limits_of_jpeg_fit_a_phone_and_no_bomb():
    def header(width, height):
        """A JPEG with the size in its header changed."""
        content = bytearray(file_of(Image.new("RGB", (16, 16)), "JPEG"))
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", height, width)
        return bytes(content)

    assert open_image(header(12_000, 9_000)).size == (6_000, 4_500)  # 108 megapixels
    assert open_image(header(16_320, 12_240)).size == (8_160, 6_120)  # 200
    with pytest.raises(HugeImage, match="of a JPEG 225,000,000"):
        open_image(header(60_000, 60_000))
