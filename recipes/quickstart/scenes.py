"""The backgrounds of the sample set: six places, drawn from a random number generator.

Every scene varies in colour, horizon and extras (the moon, a window), and reports each extra with where it is, so
that a caption can name what stays visible and nothing else.
"""

import colorsys
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256  # pixels; img2dataset gave the published shards the same
FINE = 2 * SIDE  # scenes are drawn at twice the size and halved, which smooths their edges

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Extra:
    """Something that a scene shows, and its centres (x, y) as fractions of the side. No centres: it is all over."""

    name: str
    at: tuple[tuple[float, float], ...] = ()


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Degrees, 0..1, 0..1 -> (r, g, b), 0..255 each."""
    r, g, b = colorsys.hsv_to_rgb(hue % 360 / 360, min(1, max(0, saturation)), min(1, max(0, value)))
    return round(255 * r), round(255 * g), round(255 * b)


def _fade(canvas: Image.Image, top: float, bottom: float, above: Colour, below: Colour) -> None:
    """Fill the band from `top` to `bottom` (fractions of the height) with `above` fading into `below`."""
    y0, y1 = round(top * FINE), round(bottom * FINE)
    ramp = Image.linear_gradient("L").resize((FINE, y1 - y0), Image.Resampling.BILINEAR)
    canvas.paste(above, (0, y0, FINE, y1))
    canvas.paste(Image.new("RGB", ramp.size, below), (0, y0), ramp)


def _ridge(draw: ImageDraw.ImageDraw, rng: random.Random, y: float, height: float, fill: Colour) -> None:
    """A wavy hill line around `y`, filled down to the bottom (fractions of the height)."""
    turns, phase = rng.uniform(0.6, 1.4), rng.uniform(0, 2 * math.pi)
    xs = range(0, FINE + 9, 8)
    waves = (math.sin(2 * math.pi * turns * x / FINE + phase) + 0.3 * math.sin(x / 37 + phase) for x in xs)
    line = [(x, FINE * (y + height * wave)) for x, wave in zip(xs, waves, strict=True)]
    draw.polygon([(0, FINE), *line, (FINE, FINE)], fill=fill)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Colour) -> None:
    x, y, radius = FINE * x, FINE * y, FINE * radius
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)


def _sky(canvas: Image.Image, rng: random.Random, horizon: float, hue: float = 207) -> list[Extra]:
    """A day sky down to `horizon`, perhaps with the sun and clouds."""
    hue += rng.uniform(-12, 10)
    _fade(canvas, 0, horizon, hsv(hue, rng.uniform(0.45, 0.7), 0.92), hsv(hue, 0.14, 1))
    draw, extras, sun = ImageDraw.Draw(canvas), [], rng.choice([0.13, 0.87])
    if rng.random() < 0.4:
        x, y = sun, rng.uniform(0.1, 0.16)
        _disc(draw, x, y, 0.085, hsv(52, 0.35, 1))
        _disc(draw, x, y, 0.06, hsv(50, 0.75, 1))
        extras.append(Extra("the sun", ((x, y),)))
    if rng.random() < 0.5:
        far, near = 0.2, rng.uniform(0.45, 0.6)  # from the side where the sun is not
        clouds = tuple((abs(round(1 - sun) - t), rng.uniform(0.08, horizon * 0.6)) for t in (far, near))
        for x, y in clouds:
            for dx in (-0.08, -0.03, 0.03, 0.08):
                radius = 0.045 - 0.25 * abs(dx) ** 1.3
                _disc(draw, x + dx, y + rng.uniform(-0.012, 0.012), radius, (250, 251, 253))
        extras.append(Extra("white clouds", clouds))
    return extras


def _pine(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float, fill: Colour) -> None:
    x, foot, height = FINE * x, FINE * foot, FINE * height
    draw.rectangle([x - height * 0.05, foot - height * 0.2, x + height * 0.05, foot], fill=(92, 66, 48))
    for low, half in ((0.12, 0.3), (0.36, 0.24), (0.6, 0.17)):
        top = foot - height * min(1, low + 0.42)
        left, right = (x - height * half, foot - height * low), (x + height * half, foot - height * low)
        draw.polygon([left, (x, top), right], fill=fill)


def beach(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """Sky, a band of sea, sand."""
    horizon, shore = rng.uniform(0.34, 0.42), rng.uniform(0.56, 0.64)
    extras = _sky(canvas, rng, horizon)
    hue = rng.uniform(184, 208)
    _fade(canvas, horizon, shore + 0.06, hsv(hue + 6, 0.85, 0.62), hsv(hue - 8, 0.55, 0.85))
    draw = ImageDraw.Draw(canvas)
    for _ in range(26):
        x, y = rng.uniform(0, FINE), FINE * rng.uniform(horizon + 0.02, shore - 0.02)
        draw.line([x, y, x + rng.uniform(14, 46), y], fill=hsv(hue, 0.3, 0.93), width=2)
    sand = rng.uniform(36, 44)
    state = rng.getstate()
    for rise, fill in ((0.02, (246, 250, 250)), (0, hsv(sand, 0.34, 0.8)), (-0.025, hsv(sand, 0.36, 0.93))):
        rng.setstate(state)  # foam, wet sand and dry sand follow one line
        _ridge(draw, rng, shore - rise, 0.016, fill)
    return extras


def meadow(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """Sky, far hills, grass, perhaps flowers."""
    horizon = rng.uniform(0.42, 0.52)
    extras = _sky(canvas, rng, horizon + 0.05)
    draw, hue = ImageDraw.Draw(canvas), rng.uniform(88, 118)
    _ridge(draw, rng, horizon - 0.04, 0.05, hsv(hue + 20, 0.4, 0.68))
    _ridge(draw, rng, horizon + 0.05, 0.025, hsv(hue, 0.62, 0.7))
    for _ in range(330):
        y = rng.uniform(horizon + 0.1, 1)
        x, blade = rng.uniform(0, FINE), 8 + 22 * (y - horizon)
        lean = rng.uniform(-4, 4)
        fill = hsv(hue + rng.uniform(-10, 10), 0.7, rng.uniform(0.45, 0.8))
        draw.line([x, FINE * y, x + lean, FINE * y - blade], fill=fill, width=3)
    if rng.random() < 0.5:
        petals = rng.choice([(255, 255, 255), (250, 214, 60), (240, 130, 160)])
        for _ in range(26):
            y = rng.uniform(horizon + 0.14, 0.99)
            _disc(draw, rng.random(), y, 0.006 + 0.008 * (y - horizon), petals)
        extras.append(Extra("small flowers"))
    return extras


def snow(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """A pale sky over white hills, perhaps pine trees and falling snow."""
    horizon, hue = rng.uniform(0.42, 0.52), rng.uniform(205, 230)
    _fade(canvas, 0, horizon + 0.08, hsv(hue, 0.26, 0.8), hsv(hue, 0.1, 0.95))
    draw, extras = ImageDraw.Draw(canvas), []
    _ridge(draw, rng, horizon - 0.05, 0.05, hsv(hue, 0.17, 0.88))
    if rng.random() < 0.6:
        trees = [rng.uniform(0.04, 0.96) for _ in range(rng.randint(4, 7))]
        for x in trees:
            green = hsv(rng.uniform(150, 170), 0.35, 0.42)
            _pine(draw, x, horizon + rng.uniform(0.03, 0.07), rng.uniform(0.14, 0.26), green)
        extras.append(Extra("pine trees", tuple((x, horizon - 0.02) for x in trees)))
    _ridge(draw, rng, horizon + 0.06, 0.02, hsv(hue, 0.03, 0.98))
    _ridge(draw, rng, horizon + 0.3, 0.03, hsv(hue, 0.06, 0.95))
    if rng.random() < 0.5:
        for _ in range(90):
            _disc(draw, rng.random(), rng.random(), rng.uniform(0.004, 0.01), (255, 255, 255))
        extras.append(Extra("falling snow"))
    return extras


def night(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """A dark blue sky with stars over dark hills, perhaps the moon."""
    hue = rng.uniform(222, 258)
    _fade(canvas, 0, 1, hsv(hue, 0.75, 0.2), hsv(hue - 8, 0.6, 0.48))
    draw, extras = ImageDraw.Draw(canvas), []
    for _ in range(80):
        shine = hsv(55, rng.uniform(0, 0.3), 1)
        _disc(draw, rng.random(), rng.uniform(0, 0.72), rng.uniform(0.002, 0.006), shine)
    if rng.random() < 0.55:
        x, y = rng.choice([0.15, 0.85]), rng.uniform(0.12, 0.18)
        _disc(draw, x, y, 0.075, hsv(50, 0.16, 0.97))
        for dx, dy, r in ((-0.02, -0.02, 0.016), (0.025, 0.01, 0.012), (-0.005, 0.035, 0.01)):
            _disc(draw, x + dx, y + dy, r, hsv(48, 0.2, 0.86))
        extras.append(Extra("the moon", ((x, y),)))
    _ridge(draw, rng, 0.74, 0.035, hsv(hue - 6, 0.5, 0.3))
    _ridge(draw, rng, 0.83, 0.025, hsv(hue - 20, 0.45, 0.36))
    return extras


def room(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """A painted wall with a skirting board over a floor of planks, perhaps a window or a framed picture."""
    floor, hue = rng.uniform(0.62, 0.7), rng.choice([18, 45, 95, 165, 205, 335]) + rng.uniform(-8, 8)
    wall = rng.uniform(0.16, 0.34)
    _fade(canvas, 0, floor, hsv(hue, wall, 0.93), hsv(hue, wall + 0.03, 0.84))
    draw = ImageDraw.Draw(canvas)
    wood, y0 = rng.uniform(22, 34), floor * FINE
    _fade(canvas, floor, 1, hsv(wood, 0.55, 0.6), hsv(wood, 0.55, 0.74))
    for x in range(-FINE, FINE, 64):  # from the middle; the gaps run to one point behind the wall
        draw.line([FINE / 2 + 0.72 * x, y0, FINE / 2 + 1.1 * x, FINE], fill=hsv(wood, 0.6, 0.45), width=3)
    for t in (0.3, 0.68):
        draw.line([0, y0 + t * (FINE - y0), FINE, y0 + t * (FINE - y0)], fill=hsv(wood, 0.6, 0.5), width=2)
    draw.rectangle([0, y0 - 18, FINE, y0], fill=(246, 243, 238), outline=(205, 198, 190))
    extra, x = rng.choice(["a window", "a framed picture", None]), rng.choice([0.05, 0.35, 0.65]) * FINE
    if extra == "a window":
        draw.rectangle([x, 46, x + 150, 216], fill=(250, 250, 250), outline=(180, 180, 180), width=3)
        for dx in (12, 81):
            for dy in (58, 135):
                draw.rectangle([x + dx, dy, x + dx + 57, dy + 69], fill=hsv(204, 0.4, 0.97))
    elif extra:
        draw.rectangle([x + 20, 56, x + 150, 156], fill=(120, 82, 50))
        draw.rectangle([x + 32, 68, x + 138, 144], fill=hsv(rng.uniform(190, 220), 0.35, 0.9))
        hills = [(x + 32, 144), (x + 70, 100), (x + 96, 128), (x + 112, 112), (x + 138, 144)]
        draw.polygon(hills, fill=hsv(140, 0.4, 0.55))
    return [Extra(extra, ((x / FINE + 0.15, 0.22),))] if extra else []


def street(canvas: Image.Image, rng: random.Random) -> list[Extra]:
    """A row of houses with windows, a pavement, a grey road with a dashed white line."""
    _fade(canvas, 0, 0.6, hsv(rng.uniform(198, 216), 0.5, 0.95), hsv(207, 0.15, 1))
    draw, x = ImageDraw.Draw(canvas), rng.uniform(-60, 0)
    while x < FINE:
        width, top = rng.uniform(90, 150), rng.uniform(0.12, 0.3) * FINE
        hue = rng.choice([8, 20, 35, 48, 210]) + rng.uniform(-6, 6)
        wall = hsv(hue, rng.uniform(0.25, 0.5), rng.uniform(0.6, 0.85))
        draw.rectangle([x, top, x + width, 0.6 * FINE], fill=wall, outline=(90, 82, 80), width=2)
        columns = 2 if width < 115 else 3
        for row in range(3):
            for column in range(columns):
                wx, wy = x + width * (column + 0.5) / columns - 12, top + 22 + 64 * row
                if wy < 0.52 * FINE:
                    glass = hsv(205, 0.3, rng.uniform(0.45, 0.85))
                    draw.rectangle([wx, wy, wx + 24, wy + 36], fill=glass, outline=(245, 245, 240), width=3)
        x += width
    grey = rng.uniform(0.36, 0.48)
    draw.rectangle([0, 0.6 * FINE, FINE, 0.67 * FINE], fill=hsv(40, 0.04, grey + 0.32))
    draw.rectangle([0, 0.665 * FINE, FINE, 0.68 * FINE], fill=hsv(40, 0.04, grey + 0.14))
    _fade(canvas, 0.68, 1, hsv(220, 0.06, grey), hsv(220, 0.05, grey + 0.08))
    for dash in range(-1, 5):
        x = 130 * dash + rng.uniform(-4, 4)
        top, low = 0.85 * FINE, 0.875 * FINE
        draw.polygon([(x, top), (x + 70, top), (x + 64, low), (x - 8, low)], fill=(238, 236, 226))
    return []


SCENES: dict[str, Callable[[Image.Image, random.Random], list[Extra]]] = {
    "beach": beach, "meadow": meadow, "snow": snow, "night": night, "room": room, "street": street,
}  # fmt: skip


def draw_scene(name: str, rng: random.Random) -> tuple[Image.Image, list[Extra]]:
    """A background of SIDE x SIDE, RGB, and the extras it shows."""
    canvas = Image.new("RGB", (FINE, FINE))
    extras = SCENES[name](canvas, rng)
    image = canvas.reduce(2)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        extras = [Extra(extra.name, tuple((1 - x, y) for x, y in extra.at)) for extra in extras]
    # a soft lens and a fine grain, so that flat areas look less like paint
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.8)))
    grain = np.random.default_rng(rng.getrandbits(64)).normal(0, 3, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)), extras
