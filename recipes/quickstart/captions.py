"""Captions of the sample set: short ones for stage 1, two or three sentences for stage 2.

Each follows from the `Picture` it is given, and says nothing that is not in it. Objects are named from left to right.
That there are two of them is often said first: a model that is to name both has to see it.
"""

import random

from .pictures import Picture, Placed
from .things import WORDS

LARGE, SMALL = 0.66, 0.5  # longer side of a lone object, as a share of the picture's, to be called so
_NOTABLE = 1.25  # how many times longer one of two sides must be for a caption to say so


def _stand(picture: Picture) -> bool:
    return not any(p.thing.flies for p in picture.placed)


def _where(picture: Picture, rng: random.Random) -> str:
    scene = WORDS["scenes"][picture.scene]
    return rng.choice(scene["anywhere"] + (scene["on_the_ground"] if _stand(picture) else []))


def _size(placed: Placed) -> str:
    return "large" if placed.side > LARGE else "small" if placed.side < SMALL else ""


def plain_caption(picture: Picture) -> str:
    """The same words every time: "a cat and a car on a beach"."""
    grounded = picture.scene in ("beach", "street") and _stand(picture)
    where = WORDS["scenes"][picture.scene]["on_the_ground" if grounded else "anywhere"][0]
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
        shapes += ["{0} on the left and {1} on the right {w}", *["two things {w}: {0} and {1}"] * 2]
    return rng.choice(shapes).format(*names, w=where)


def long_caption(picture: Picture, rng: random.Random) -> str:
    """Two or three whole sentences, at most 50 words: what, where in the picture, its looks or the scene."""
    colour = rng.random() < 0.5
    what, where = " and ".join(p.thing.phrase(colour) for p in picture.placed), _where(picture, rng)
    opening = rng.choice(["The image shows", "The picture shows", "This image shows", "In this picture, you can see"])
    lone = len(picture.placed) == 1
    sentences = [f"{opening} {what} {where}." if lone else f"{opening} two things {where}: {what}."]
    sentences.append(_single(picture.placed[0], rng) if lone else _pair(picture.placed, rng))
    coloured = [p for p in picture.placed if p.thing.colour]
    if rng.random() < 0.5:
        if coloured and not colour:
            parts = [f"the {p.thing.name} is {p.thing.colour}" for p in coloured]
            sentences.append((" and ".join(parts) + ".").capitalize())
        else:
            extras = [rng.choice(WORDS["extras"][extra]) for extra in picture.extras]
            sentences.append(rng.choice([*WORDS["scenes"][picture.scene]["background"], *extras]))
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
