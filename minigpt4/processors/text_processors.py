"""Captions -> training text."""

import re

from ..common.registry import PROCESSORS


@PROCESSORS.register("blip_caption")
class BlipCaption:
    """BLIP's cleaning: lower case, `.!"()*#:;~` become spaces, runs of spaces become one, the first `max_words` words.

    Source: LAVIS's BlipCaptionProcessor, used in stage 1.
    """

    def __init__(self, prompt: str = "", max_words: int = 50):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
        caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
        return self.prompt + " ".join(caption.split(" ")[: self.max_words])


@PROCESSORS.register("plain_text")
class PlainText:
    """The text as it is, without white space at its ends (stage 2: answers keep their case and punctuation)."""

    def __init__(self, prompt: str = "", max_words: int | None = None):
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        caption = caption.strip()
        return self.prompt + (" ".join(caption.split()[: self.max_words]) if self.max_words else caption)
