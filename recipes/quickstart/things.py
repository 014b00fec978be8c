"""The objects of the sample set and the words of its captions, read from words.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from recipes.english import article

WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Thing:
    """An object: its picture, the name that captions use, and what is known of its looks."""

    codepoint: str  # the name of OpenMoji's file
    name: str
    colour: str = ""
    synonyms: tuple[str, ...] = ()
    flies: bool = False

    def phrase(self, colour: bool = False, size: str = "") -> str:
        """With an article, and if wanted with size and colour: "an elephant", "a large gray elephant"."""
        words = " ".join(word for word in (size, self.colour if colour else "", self.name) if word)
        return f"{article(words)} {words}"


THINGS = tuple(Thing(**{**row, "synonyms": tuple(row.get("synonyms", ()))}) for row in WORDS["things"])
