"""The objects of the sample set: a table from OpenMoji's code points to names.

The choice: everyday objects that a frozen ImageNet EfficientNet-Lite0 tells apart on every scene. A linear probe on
its features, held out by combination, names all of them; pictures that it confuses (a second duck-like bird, a bus
that looks like the car) are left out, and so are plurals, which captions would have to bend for.
"""

from dataclasses import dataclass

from ..common.english import article


@dataclass(frozen=True)
class Thing:
    """An object: its picture, the name that captions use, and what is known of its looks."""

    codepoint: str  # the name of OpenMoji's file
    name: str
    colour: str = ""  # only where it is plain to see
    synonyms: tuple[str, ...] = ()  # other right names for it
    flies: bool = False  # placed in the air, not on the ground

    def phrase(self, colour: bool = False, size: str = "") -> str:
        """With an article, and if wanted with size and colour: "an elephant", "a large gray elephant"."""
        words = " ".join(word for word in (size, self.colour if colour else "", self.name) if word)
        return f"{article(words)} {words}"


def _thing(codepoint: str, colour: str, names: str, flies: bool = False) -> Thing:
    name, *synonyms = names.split(", ")
    return Thing(codepoint, name, colour, tuple(synonyms), flies)


THINGS: tuple[Thing, ...] = (
    # animals
    _thing("1F415", "", "dog, puppy"),
    _thing("1F408", "orange", "cat, kitten, kitty"),
    _thing("1F40E", "brown", "horse, pony"),
    _thing("1F404", "brown and white", "cow, bull, cattle"),
    _thing("1F411", "white", "sheep, lamb"),
    _thing("1F407", "black and white", "rabbit, bunny, hare"),
    _thing("1F418", "gray", "elephant"),
    _thing("1F427", "black and white", "penguin"),
    _thing("1F989", "gray", "owl"),
    _thing("1F9A9", "pink", "flamingo"),
    _thing("1F422", "green", "turtle, tortoise"),
    _thing("1F40D", "green", "snake, serpent"),
    _thing("1F99E", "red", "lobster, crayfish"),
    _thing("1F41E", "red", "ladybug, ladybird, lady beetle"),
    _thing("1F98B", "blue", "butterfly", flies=True),
    # food
    _thing("1F34E", "red", "apple"),
    _thing("1F34C", "yellow", "banana"),
    _thing("1F34B", "yellow", "lemon"),
    _thing("1F353", "red", "strawberry"),
    _thing("1F34D", "brown", "pineapple"),
    _thing("1F349", "", "slice of watermelon, watermelon, melon"),
    _thing("1F955", "orange", "carrot"),
    _thing("1F344", "red", "mushroom, toadstool"),
    _thing("1F355", "", "slice of pizza, pizza"),
    _thing("1F354", "", "hamburger, burger, cheeseburger"),
    _thing("1F382", "yellow", "cake"),
    # vehicles
    _thing("1F697", "red", "car, automobile"),
    _thing("1F6B2", "red", "bicycle, bike"),
    _thing("1F3CD", "red", "motorcycle, motorbike"),
    _thing("1F69C", "green", "tractor"),
    _thing("1F692", "red", "fire engine, fire truck, firetruck"),
    _thing("2708", "gray", "airplane, plane, aeroplane, aircraft", flies=True),
    _thing("1F680", "red", "rocket, spaceship", flies=True),
    _thing("1F681", "red", "helicopter, chopper", flies=True),
    # things at home
    _thing("2615", "white", "cup of coffee, cup, coffee, coffee cup, mug, teacup"),
    _thing("1FAD6", "gray", "teapot, tea pot, kettle"),
    _thing("1FA91", "yellow", "chair"),
    _thing("1F6CF", "blue", "bed"),
    _thing("23F0", "white", "clock, alarm clock"),
    _thing("2602", "purple", "umbrella, parasol"),
    _thing("1F3B8", "red", "guitar"),
    _thing("26BD", "black and white", "soccer ball, football, ball"),
    _thing("1F388", "red", "balloon", flies=True),
    _thing("1F4FA", "gray", "television, tv, monitor, tv set"),
    _thing("1F4F7", "gray", "camera"),
    _thing("260E", "red", "telephone, phone"),
    _thing("1F9F3", "brown", "suitcase, luggage"),
    _thing("1F9F8", "brown", "teddy bear, teddy"),
)
