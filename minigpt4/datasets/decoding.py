"""Files -> picture, JSON and caption. Whatever the files hold, only a fault with its reason is raised."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..processors.image_processors import decode_image
from ..processors.text_processors import has_text
from .faults import BadCaption, BadJson, HugeMember, MissingFile, NoCaption, short, with_retries

IMAGES = ("jpg", "jpeg", "png", "webp")  # suffixes of pictures in shards
MAX_MEMBER = 64 * 2**20  # bytes of a file that are read into memory
MAX_JSON = 2**20  # bytes; parsed, nested lists take a thousand times as much memory
MAX_CAPTION = 20_000  # characters; a tokenizer takes seconds for more, and only max_txt_len tokens are kept


def decode_json(content: bytes) -> dict:
    """Return the object that a sample's .json holds.

    Raises:
        BadJson
    """
    if len(content) > MAX_JSON:
        raise BadJson(f"its json has {len(content):,} bytes; at most {MAX_JSON:,} are read")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadJson(f"its json cannot be parsed: {short(str(error))}") from None
    if not isinstance(value, dict):
        raise BadJson(f"its json is a {type(value).__name__}, not an object")
    return value


def clean_caption(caption: Any, text_processor: Callable[[str], str]) -> str:
    """Check a caption and return it as the text processor changes it.

    Raises:
        NoCaption: no readable text is left; it would teach the model to answer nothing.
        BadCaption
    """
    text = text_processor(check_caption(caption))
    if not has_text(text):
        raise NoCaption(f"nothing is left of its caption {short(ascii(caption))}")
    return text


def check_caption(caption: Any) -> str:
    """Return the caption if it can be trained on.

    Raises:
        NoCaption, BadCaption
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
    return caption


def read_image_file(path: Path) -> Image.Image:
    """Read and decode a picture. Transient errors of the storage are tried again.

    Raises:
        SampleFault, BrokenImage, HugeImage
    """

    def read() -> bytes:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise MissingFile(f"{path.name}: not a file")
        if status.st_size > MAX_MEMBER:
            raise HugeMember(f"{path.name}: {status.st_size:,} bytes; at most {MAX_MEMBER:,} are read")
        return path.read_bytes()

    return decode_image(with_retries(read, str(path)), path.name)
