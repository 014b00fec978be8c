"""Captions -> training text."""

import re
from dataclasses import dataclass

from ..common.registry import PROCESSORS


def has_text(text: str) -> bool:
    """Whether a character of it shows. Zero-width ones (U+200B, U+FEFF, ...) do not, and `strip` keeps them."""
    return any(c.isprintable() and not c.isspace() for c in text)


@PROCESSORS.register("blip_caption")
@dataclass
class BlipCaption:
    """BLIP's cleaning: lower case, `.!"()*#:;~` become spaces, runs of spaces become one, the first `max_words` words.
    Nothing, not even the prompt, is left of a caption without words. Source: LAVIS's BlipCaptionProcessor (stage 1)."""

    prompt: str = ""
    max_words: int = 50

    def __call__(self, caption: str) -> str:
        caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
        caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
        caption = " ".join(caption.split(" ")[: self.max_words])
        return self.prompt + caption if has_text(caption) else ""


@PROCESSORS.register("plain_text")
@dataclass
class PlainText:
    """The text as it is, without white space at its ends (stage 2: answers keep their case and punctuation)."""

    prompt: str = ""
    max_words: int | None = None

    def __call__(self, caption: str) -> str:
        caption = " ".join(caption.split()[: self.max_words]) if self.max_words else caption.strip()
        return self.prompt + caption if has_text(caption) else ""
