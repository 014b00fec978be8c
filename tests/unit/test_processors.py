"""Image transforms and caption cleaning, against the original's, and on pictures as they come."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.processors.image_processors import CLIP_MEAN, CLIP_STD, Blip2ImageEval, Blip2ImageTrain, to_rgb
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
    assert np.abs(out.numpy() - g["train_out"]).max() < 1e-5


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


# -- captions -----------------------------------------------------------------------------------------------------


def test_caption_options():
    assert BlipCaption(prompt="a photo of ", max_words=2)("A Big RED dog.") == "a photo of a big"
    assert PlainText()("  As it IS: written!\nTwice. ") == "As it IS: written!\nTwice."
    assert PlainText(max_words=3)("As it IS: written!") == "As it IS:"
    assert PlainText(prompt="> ")("x") == "> x"
