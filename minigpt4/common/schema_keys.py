"""What the schema knows of each key: default, meaning, range, and whether it names a file."""

import math
import operator
from collections.abc import Mapping
from dataclasses import field
from typing import Any

UNUSED = "Not used; configs of the original have it."  # the text of such a key begins with this
LIMITS = {"least": ("at least", operator.ge), "above": ("above", operator.gt), "most": ("at most", operator.le),
          "below": ("below", operator.lt)}  # fmt: skip


def key(default: Any, doc: str, *, path: bool = False, url: bool = False, **limits: float) -> Any:
    """A documented config key.

    Args:
        path: a file or folder that must exist.
        url: which may also be a URL.
        limits: the range of a number, or of each number of a list, by the names in LIMITS.
    """
    make = (
        {"default_factory": lambda: type(default)(default)}
        if isinstance(default, (dict, list))
        else {"default": default}
    )
    text = " and ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
    return field(metadata={"doc": doc, "path": path, "url": url, "limits": limits, "range": text}, **make)


def in_range(number: float, metadata: Mapping) -> bool:
    """Whether a key's `metadata` allows the number. NaN and infinity are never allowed."""
    return math.isfinite(number) and all(LIMITS[name][1](number, limit) for name, limit in metadata["limits"].items())


def meaning(metadata: Mapping) -> str:
    """The text of a key with its range, e.g. `Side of the square input image, in pixels (at least 1).`"""
    return metadata["doc"].removesuffix(".") + (f" ({metadata['range']})." if metadata.get("range") else ".")
