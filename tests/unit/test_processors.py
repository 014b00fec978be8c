"""Image transforms and caption cleaning, against the original's, and on pictures as they come."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from minigpt4.common import packages
from minigpt4.datasets.image_text import ImageTextSource
from minigpt4.datasets.shards import ShardSource
from minigpt4.processors import image_processors
from minigpt4.processors.image_processors import (
    CLIP_MEAN,
    CLIP_STD,
    Blip2ImageEval,
    Blip2ImageTrain,
    BrokenImage,
    decode_image,
    decode_pixels,
    to_rgb,
)
from minigpt4.processors.text_processors import BlipCaption, PlainText


def through_file(image: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def pixels(image: Image.Image) -> np.ndarray:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


# -- golden -------------------------------------------------------------------------------------------------------


def test_eval_transform(golden):
    g = golden("image")
    out = Blip2ImageEval(image_size=56)(Image.fromarray(g["raw_uint8"]))
    assert np.abs(out.numpy() - g["eval_out"]).max() < 1e-5


def test_train_transform(golden):
    g = golden("image")
    torch.manual_seed(123)
    out = Blip2ImageTrain(image_size=56)(Image.fromarray(g["raw_uint8"]))
    levels = np.abs(out.numpy() - g["train_out"]) * np.array(CLIP_STD)[:, None, None] * 255
    assert levels.max() < 1.01 and (levels > 0.01).mean() < 0.01  # the same crop; few values differ, by one level


# -- pictures as they come ----------------------------------------------------------------------------------------


def test_mean_and_std_are_by_channel():
    image = Image.new("RGB", (9, 5), (255, 0, 51))
    out = Blip2ImageEval(image_size=4)(image)
    wanted = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), CLIP_MEAN, CLIP_STD, strict=True)]
    assert out.shape == (3, 4, 4)
    assert torch.allclose(out, torch.tensor(wanted)[:, None, None].expand(3, 4, 4), atol=1e-6)
    half = Blip2ImageEval(image_size=4, mean=[0.5] * 3, std=[0.5] * 3)(image)
    assert half[:, 0, 0].tolist() == pytest.approx([1, -1, -0.6])


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = through_file(Image.fromarray(values), "PNG")
    assert image.mode.startswith("I")
    assert pixels(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk():
    image = through_file(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert image.mode == "CMYK"
    red, green, blue = pixels(image)[8, 8]
    assert red > 240 and green < 15 and blue < 15


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    rgba.putpixel((1, 0), (10, 20, 30, 255))
    assert pixels(through_file(rgba, "PNG"))[0].tolist() == [[255, 255, 255], [10, 20, 30]]

    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    image = through_file(palette, "PNG", transparency=0)
    assert image.mode == "P"
    assert pixels(image)[0].tolist() == [[255, 255, 255], [0, 0, 200]]

    grey = Image.new("LA", (1, 1), (40, 0))
    assert pixels(through_file(grey, "PNG"))[0, 0].tolist() == [255, 255, 255]
    keyed = through_file(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(keyed)[0, 0].tolist() == [255, 255, 255]


def test_exif_turns_the_picture_upright():
    lying = Image.new("RGB", (16, 8), "white")
    lying.paste((0, 0, 0), (0, 0, 8, 8))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright = pixels(through_file(lying, "PNG", exif=exif))
    assert upright.shape == (16, 8, 3)
    assert upright[:8].max() == 0 and upright[8:].min() == 255


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "I;16", "YCbCr", "HSV"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (64, 3)])
def test_any_mode_and_any_size_gives_a_square(mode, size):
    image = Image.new(mode, size)
    for processor in (Blip2ImageEval(image_size=8), Blip2ImageTrain(image_size=8, flip=True)):
        out = processor(image)
        assert out.shape == (3, 8, 8) and out.dtype == torch.float32
        assert out.isfinite().all()


def test_the_crop_keeps_its_share_and_flip_mirrors():
    wide = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    spans, mirrored = [], 0
    processor = Blip2ImageTrain(image_size=32, mean=[0] * 3, std=[1] * 3, min_scale=0.9, flip=True)
    torch.manual_seed(0)
    for _ in range(40):
        row = processor(wide)[0, 16] * 255
        spans.append((row[-1] - row[0]).abs().item())
        mirrored += bool(row[-1] < row[0])
    assert min(spans) > 200 * 0.9**0.5 * 0.75 * 0.9  # area 0.9, aspect 3/4 at most
    assert 10 < mirrored < 30
    torch.manual_seed(0)
    plain = Blip2ImageTrain(image_size=32)
    assert all((out := plain(wide))[0, 16, -1] > out[0, 16, 0] for _ in range(20))


# -- JPEGs in training --------------------------------------------------------------------------------------------


def photo(width: int = 160, height: int = 90, **options) -> bytes:
    """A JPEG of a smooth colourful picture."""
    cells = np.random.default_rng(width).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image, file = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
    mode = options.pop("mode", "RGB")
    image.convert(mode).save(file, options.pop("kind", "JPEG"), **{"quality": 90} | options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PLAIN = [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}, {"kind": "MPO"}]
PLAIN += [{"width": 161, "height": 91}, *({"exif": turned(i)} for i in (1, 3, 6, 8))]
FOR_PIL = [{"exif": turned(2)}, {"exif": turned(7)}, {"mode": "CMYK"}, {"kind": "PNG"}, {"kind": "WEBP"}]


@pytest.mark.parametrize(("options", "plain"), [(o, True) for o in PLAIN] + [(o, False) for o in FOR_PIL])
def test_training_sees_the_pixels_that_pil_decodes(options, plain, monkeypatch):
    content = photo(**options)
    expected = np.asarray(decode_image(content, "x"))
    with monkeypatch.context() as patch:
        patch.setattr(image_processors, "decode_jpeg", None)  # simplejpeg is not installed
        assert np.array_equal(decode_pixels(content, "x"), expected)
    pytest.importorskip("simplejpeg")
    asked = []
    monkeypatch.setattr(image_processors, "to_rgb", lambda image: asked.append(image) or to_rgb(image))
    assert np.array_equal(decode_pixels(content, "x"), expected)
    assert bool(asked) != plain


def test_datasets_decode_as_the_processor_wants(tmp_path):
    class Own:
        def decode(self, content, name):
            return content[:2], name

        def __call__(self, made):
            return made

    (tmp_path / "a.jpg").write_bytes(photo())
    sample = {"jpg": photo(), "json": b'{"caption": "x"}'}
    assert ShardSource([], Own(), str).decode(sample)["image"] == (b"\xff\xd8", "its jpg")
    assert ImageTextSource([], Own(), str).decode((tmp_path / "a.jpg", "x"))["image"] == (b"\xff\xd8", "a.jpg")
    for source, raw in ((ShardSource, sample), (ImageTextSource, (tmp_path / "a.jpg", "x"))):
        seen = source([], lambda image: image, str).decode(raw)["image"]
        assert isinstance(seen, Image.Image) and (seen.mode, seen.size) == ("RGB", (160, 90))


def test_a_very_large_jpeg_is_decoded_at_half_scale_in_training_too(monkeypatch):
    content = photo(1283, 961)
    monkeypatch.setattr(image_processors, "MAX_PIXELS", 1_000_000)
    pixels = decode_pixels(content, "x")
    assert pixels.shape == (481, 642, 3) and np.array_equal(pixels, np.asarray(decode_image(content, "x")))


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_jpeg_fares_as_with_pil(seed):
    rng = np.random.default_rng(seed)
    content = bytearray(photo(exif=turned(6)))
    for place in rng.integers(2, len(content), rng.integers(1, 6)):
        content[place] = rng.integers(256)
    content = bytes(content[: rng.integers(200, len(content) + 1) if seed % 3 == 0 else None])

    def outcome(decode):
        try:
            return np.asarray(decode(content, "x")).tolist()
        except BrokenImage as error:
            return str(error)

    assert outcome(decode_pixels) == outcome(decode_image)


def test_resized_crops_are_within_one_level_of_the_originals():
    crop = transforms.RandomResizedCrop(64, (0.5, 1.0), interpolation=Image.Resampling.BICUBIC)
    see = Blip2ImageTrain(64, [0] * 3, [1] * 3)
    for seed, (width, height) in enumerate([(256, 256), (500, 375), (90, 300), (40, 30)]):
        content = photo(width, height)
        torch.manual_seed(seed)
        theirs = np.asarray(crop(decode_image(content, "x"))).astype(int)
        for seen in (see.decode(content, "x"), decode_image(content, "x")):
            torch.manual_seed(seed)
            ours = (see(seen) * 255).permute(1, 2, 0).numpy()
            assert np.abs(ours - theirs).max() < 1.001 and (np.abs(ours - theirs) > 0.5).mean() < 0.02


def test_scaled_jpeg_reads_fewer_pixels_and_enlarges_no_crop(monkeypatch):
    pytest.importorskip("simplejpeg")
    see, full = Blip2ImageTrain(scaled_jpeg=True), Blip2ImageTrain()
    # The narrowest crop has half of the area at 3 : 4, so its short side is 0.61 of the picture's: 366 * 0.61 = 224.
    assert see.smallest == 366
    assert see.decode(photo(1280, 960), "x").shape == (480, 640, 3)
    assert see.decode(photo(400, 300), "x").shape == (300, 400, 3)  # never enlarged
    assert see.decode(photo(960, 1280, exif=turned(6)), "x").shape == (480, 640, 3)
    content = photo(1280, 960)
    small = decode_image(content, "x").resize((640, 480), Image.Resampling.BOX)
    assert 0 < np.abs(see.decode(content, "x") - np.asarray(small).astype(int)).mean() < 1
    assert full.decode(content, "x").shape == (960, 1280, 3)
    seen = torch.from_numpy(see.decode(photo(736, 736), "x")).permute(2, 0, 1)
    assert seen.shape == (3, 368, 368)
    crops = [see.transform.transforms[0].make_params([seen]) for _ in range(300)]
    assert 224 <= min(min(crop["height"], crop["width"]) for crop in crops) < 250

    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(packages.MissingPackage, match=r"scaled_jpeg needs simplejpeg.*\[fast\]"):
        Blip2ImageTrain(scaled_jpeg=True)


# -- captions -----------------------------------------------------------------------------------------------------


def test_caption_options():
    assert BlipCaption(prompt="a photo of ", max_words=2)("A Big RED dog.") == "a photo of a big"
    assert PlainText()("  As it IS: written!\nTwice. ") == "As it IS: written!\nTwice."
    assert PlainText(max_words=3)("As it IS: written!") == "As it IS:"
    assert PlainText(prompt="> ")("x") == "> x"
