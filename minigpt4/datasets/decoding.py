"""The bytes of a sample -> picture and caption; or a fault that says what is wrong, whatever the bytes are."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..processors.image_processors import decode_image
from ..processors.text_processors import has_text
from .faults import BadCaption, BadJson, NoCaption, pause_after, short

IMAGES = ("jpg", "jpeg", "png", "webp")  # suffixes of pictures in shards
MAX_MEMBER = 64 * 2**20  # bytes of a shard's member that are read into memory
MAX_CAPTION = 20_000  # characters; a tokenizer takes seconds for more, and only max_txt_len tokens are kept


def decode_json(content: bytes | str, name: str = "its json") -> dict:
    """The object that a JSON text holds. Raises BadJson."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadJson(f"{name} cannot be parsed: {short(str(error))}") from None
    if not isinstance(value, dict):
        raise BadJson(f"{name} is a {type(value).__name__}, not an object")
    return value


def clean_caption(caption: Any, text_processor: Callable[[str], str]) -> str:
    """A caption as the text processor changes it. Raises NoCaption, BadCaption.

    An empty one would teach the model to answer nothing.
    """
    if caption is None:
        raise NoCaption("it has no caption")
    if not isinstance(caption, str):
        raise BadCaption(f"its caption is {short(repr(caption))}, not a text")
    if len(caption) > MAX_CAPTION:
        raise BadCaption(f"its caption has {len(caption):,} characters; at most {MAX_CAPTION:,} are taken")
    if not has_text(caption):
        raise NoCaption("its caption is empty")
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair; tokenizers stop at it
        raise BadCaption(f"its caption is no valid Unicode: {short(str(error))}") from None
    text = text_processor(caption)
    if not has_text(text):
        raise NoCaption(f"nothing is left of its caption {short(ascii(caption))}")
    return text


def read_image_file(path: Path) -> Image.Image:
    """Read and decode a picture. Raises SampleFault, BrokenImage, HugeImage."""
    for attempt in itertools.count():
        try:
            return decode_image(path.read_bytes(), path.name)
        except OSError as error:
            if fault := pause_after(error, attempt, str(path)):
                raise fault from None
