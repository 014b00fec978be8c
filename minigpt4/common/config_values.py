"""A written value -> a value of its key's type and range, or a line of what is wrong with it."""

import contextlib
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from yaml import YAMLError

from .config_checks import suggest
from .schema import Config, in_range

INVALID = object()  # what `_convert` gives for a value that has a line in `problems`


def option_value(kind: Any, text: str) -> Any:
    """An option's text as YAML; but a text is taken as it stands, unless it is in quotes. `null` is no text where the
    key may be null."""
    kinds = _alternatives(kind)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    is_list = list[str] in kinds and text.startswith("[")
    is_null = text == "null" and (type(None) in kinds or list[str] in kinds)
    is_text = str in kinds or list[str] in kinds
    if is_text and not (quoted or is_list or is_null):
        return text
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except YAMLError:
        if is_text:  # 'it's'
            return text
        raise
    # YAML ends a text at ` #`, and makes nothing of one that begins with #.
    cut = kind is Any and isinstance(value, str) and not quoted
    return text if cut or (value is None and text.startswith("#")) else value


def _alternatives(kind: Any) -> tuple:
    """`str | None` -> (str, NoneType); `str` -> (str,)"""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def kind_of(dotted: str) -> Any:
    """The type of a key, Any where the schema has none: an unknown key, or one of a free section."""
    kind: Any = Config
    for name in dotted.split("."):
        inner = next((k for k in _alternatives(kind) if is_dataclass(k) or get_origin(k) is dict), None)
        if inner is None:
            return Any
        kind = {f.name: f.type for f in fields(inner)}.get(name, Any) if is_dataclass(inner) else get_args(inner)[1]
    return kind


def is_section(kind: Any) -> bool:
    return is_dataclass(kind) or get_origin(kind) is dict


def fill(cls: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Build dataclass `cls` from a dict. Unknown keys and wrong types get a line in `problems`, and the default."""
    if not isinstance(data, dict):
        if data is not None:  # `run:` with nothing below it means: the defaults
            problems.append(f"{prefix.rstrip('.')}: {data!r} should be a section with keys of its own")
        return cls()
    known = {f.name: f for f in fields(cls) if f.metadata}
    values = {}
    for k, value in data.items():
        if k in known:
            values[k] = _convert(known[k].type, value, f"{prefix}{k}", problems)
            if known[k].metadata.get("limits"):
                values[k] = _limited(values[k], known[k].metadata, f"{prefix}{k}", problems)
        else:
            problems.append(f"{prefix}{k}: unknown key{suggest(k, known)}")
    return cls(**{k: v for k, v in values.items() if v is not INVALID})


def _limited(value: Any, metadata: Mapping, name: str, problems: list[str]) -> Any:
    """`value`, or INVALID and a line in `problems` for a number that is out of the key's range."""
    numbers = value if isinstance(value, list) else [value]
    wrong = [n for n in numbers if n is not INVALID and n is not None and not in_range(n, metadata)]
    if not wrong:
        return value
    finite = "" if math.isfinite(wrong[0]) else "a finite number, "
    off = ", or null" if type(None) in _alternatives(kind_of(name)) else ""
    problems.append(f"{name}: {wrong[0]} should be {finite}{metadata['range']}{off}")
    return INVALID


def _convert(kind: Any, value: Any, name: str, problems: list[str]) -> Any:
    """`value` as type `kind`, or INVALID and a line in `problems`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        wanted = (a for a in args if isinstance(value, list) and get_origin(a) is list)
        return _convert(next(wanted, args[0]), value, name, problems)
    if is_dataclass(kind):
        return fill(kind, value, f"{name}.", problems)
    if origin is dict:
        if value is None or isinstance(value, dict):
            return {str(k): fill(args[1], v, f"{name}.{k}.", problems) for k, v in (value or {}).items()}
        problems.append(f"{name}: {value!r} should be a section with keys of its own")
        return INVALID
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):  # 1 == True
            return value
        problems.append(f"{name}: {value!r} should be one of {', '.join(map(str, args))}")
        return INVALID
    if origin is list and (isinstance(value, list) or (value is not None and args[0] is str)):
        values = value if isinstance(value, list) else [value]  # one text is a list of one
        made = [_convert(args[0], v, name, problems) for v in values]
        return INVALID if any(v is INVALID for v in made) else made
    if value is None and (kind is dict or origin is list):
        return (origin or kind)()
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError):  # of a text: it is told below. YAML reads 3e-5 in quotes as a text
            return float(value)
    if kind is Any or type(value) is kind:
        return value
    quotes = ": write it in quotes" if kind is str and type(value) in (int, float, bool) else ""
    problems.append(f"{name}: {value!r} is {_a(type(value))}; it should be {_a(origin or kind)}{quotes}")
    return INVALID


def _a(kind: type) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", list: "a list",
             dict: "a section with keys of its own", type(None): "nothing (null)"}  # fmt: skip
    return words.get(kind, kind.__name__)
