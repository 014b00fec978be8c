"""Captions of the sample set: short ones for stage 1, two to four sentences for stage 2.

Each follows from the `Picture` it is given, and says nothing that is not in it. Objects are named from left to right.
"""

import random

from minigpt4.tools.sample_pictures import Picture, Placed

# Where it is: (phrases for any picture, phrases for one where everything stands on the ground)
_WHERE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beach": (("at the beach", "at a beach by the sea"), ("on a beach", "on a sandy beach")),
    "meadow": (("in a meadow", "in a green meadow"), ("on the grass in a meadow",)),
    "snow": (("in the snow", "in a snowy landscape"), ("on snowy ground",)),
    "night": (("at night", "under a starry night sky"), ("on a dark hill at night",)),
    "room": (("in a room", "in a room with a wooden floor"), ("on the wooden floor of a room",)),
    "street": (("in a city", "in a city with a row of houses"), ("on a street", "on a city street")),
}
# What is always there, however the scene varies.
_BACKGROUND: dict[str, tuple[str, ...]] = {
    "beach": ("The sea and the sky are in the background.", "Behind the sand is the sea."),
    "meadow": ("Green grass covers the ground.", "There are green hills in the background."),
    "snow": ("White snow covers the ground.", "The whole ground is white with snow."),
    "night": ("The dark sky is full of stars.", "Many stars are in the dark blue sky."),
    "room": ("The room has a wooden floor.", "Behind is a painted wall, and the floor is made of wood."),
    "street": ("A row of houses stands behind the road.", "There are houses along the gray road."),
}
_EXTRAS: dict[str, tuple[str, ...]] = {
    "the sun": ("The sun is in the sky.", "The sun is shining."),
    "white clouds": ("There are white clouds in the sky.", "White clouds float in the sky."),
    "small flowers": ("Small flowers grow in the grass.", "There are small flowers in the grass."),
    "pine trees": ("Pine trees stand in the background.", "There are pine trees in the background."),
    "falling snow": ("Snow is falling.", "Snowflakes are in the air."),
    "the moon": ("The moon is in the sky.", "The moon is shining."),
    "a window": ("There is a window in the wall.", "The wall has a window."),
    "a framed picture": ("A framed picture hangs on the wall.", "There is a framed picture on the wall."),
}
# Other words for the scenes, for whoever scores an answer.
SCENE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "beach": ("sea", "ocean", "sand", "sandy", "shore"),
    "meadow": ("grass", "field", "grassy"),
    "snow": ("snowy", "snowfall"),
    "night": ("stars", "starry", "moon", "night sky"),
    "room": ("wooden floor", "indoors"),
    "street": ("road", "city", "houses"),
}
LARGE, SMALL = 0.66, 0.5  # longer side of a lone object, as a share of the picture's, to be called so
_NOTABLE = 1.25  # how many times longer one of two sides must be for a caption to say so


def _stand(picture: Picture) -> bool:
    return not any(p.thing.flies for p in picture.placed)


def _where(picture: Picture, rng: random.Random) -> str:
    anywhere, grounded = _WHERE[picture.scene]
    return rng.choice(anywhere + grounded if _stand(picture) else anywhere)


def _size(placed: Placed) -> str:
    return "large" if placed.side > LARGE else "small" if placed.side < SMALL else ""


def plain_caption(picture: Picture) -> str:
    """The same words every time: "a cat and a car on a beach"."""
    anywhere, grounded = _WHERE[picture.scene]
    where = grounded[0] if picture.scene in ("beach", "street") and _stand(picture) else anywhere[0]
    return " and ".join(p.thing.phrase() for p in picture.placed) + " " + where


def short_caption(picture: Picture, rng: random.Random) -> str:
    """One phrase, as people write under pictures: "a red apple next to a cat on a beach"."""
    where = _where(picture, rng)
    colour = rng.random() < 0.4
    names = [p.thing.phrase(colour) for p in picture.placed]
    if len(names) == 1:
        size = _size(picture.placed[0])
        if size and rng.random() < 0.25:
            names = [picture.placed[0].thing.phrase(colour, size)]
        shapes = ["{0} {w}", "{0} {w}", "there is {0} {w}", "a picture of {0} {w}"]
    else:
        shapes = ["{0} and {1} {w}", "{0} and {1} {w}", "{0} next to {1} {w}", "a picture of {0} and {1} {w}"]
        shapes.append("{0} on the left and {1} on the right {w}")
    return rng.choice(shapes).format(*names, w=where)


def long_caption(picture: Picture, rng: random.Random) -> str:
    """Two to four whole sentences, at most 60 words: what, where in the picture, its looks, the scene."""
    colour = rng.random() < 0.5
    what = " and ".join(p.thing.phrase(colour) for p in picture.placed)
    opening = rng.choice(["The image shows", "The picture shows", "This image shows", "In this picture, you can see"])
    sentences = [f"{opening} {what} {_where(picture, rng)}."]
    sentences.append(_single(picture.placed[0], rng) if len(picture.placed) == 1 else _pair(picture.placed, rng))
    coloured = [p for p in picture.placed if p.thing.colour]
    if coloured and not colour and rng.random() < 0.7:
        parts = [f"the {p.thing.name} is {p.thing.colour}" for p in coloured]
        sentences.append((" and ".join(parts) + ".").capitalize())
    about = [rng.choice(_BACKGROUND[picture.scene]), *(rng.choice(_EXTRAS[extra]) for extra in picture.extras)]
    rng.shuffle(about)
    sentences += about[: max(0, min(rng.choice([1, 1, 2]), 4 - len(sentences)))]
    return " ".join(sentences)


def _single(placed: Placed, rng: random.Random) -> str:
    name, size = placed.thing.name, _size(placed)
    where = {"left": "on the left side", "middle": "in the middle", "right": "on the right side"}[placed.place]
    if size == "large":
        return f"The {name} is large and " + rng.choice(["takes up much of the picture.", f"{where}."])
    if size == "small":
        return f"The {name} is rather small and {where} of the picture."
    return rng.choice([f"The {name} is {where} of the picture.", f"It is {where} of the picture."])


def _pair(placed: tuple[Placed, ...], rng: random.Random) -> str:
    left, right = (p.thing.name for p in placed)
    shapes = [
        f"The {left} is on the left and the {right} is on the right.",
        f"On the left is the {left}, and on the right is the {right}.",
        f"The {left} is to the left of the {right}.",
    ]
    big, small = sorted(placed, key=lambda p: -p.side)
    if big.side > _NOTABLE * small.side:
        shapes.append(f"The {big.thing.name} on the {big.place} is larger than the {small.thing.name}.")
    return rng.choice(shapes)
