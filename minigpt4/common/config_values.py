"""A written value -> a value of its key's type and range, or a line of what is wrong with it."""

import contextlib
import math
import types
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from yaml import YAMLError

from .errors import suggest
from .schema import Config, in_range

NOT_A_SECTION = "should be a section with keys of its own"
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", list: "a list",
         dict: "a section with keys of its own", type(None): "nothing (null)"}  # fmt: skip


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
        inner = next((k for k in _alternatives(kind) if is_section(k)), None)
        if inner is None:
            return Any
        kind = {f.name: f.type for f in fields(inner)}.get(name, Any) if is_dataclass(inner) else get_args(inner)[1]
    return kind


def is_section(kind: Any) -> bool:
    return is_dataclass(kind) or get_origin(kind) is dict


def fill(cls: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Build dataclass `cls` from a dict. Unknown keys and wrong values get a line in `problems`, and the default."""
    if not isinstance(data, dict):
        if data is not None:  # `run:` with nothing below it means: the defaults
            problems.append(f"{prefix.rstrip('.')}: {data!r} {NOT_A_SECTION}")
        return cls()
    known = {f.name: f for f in fields(cls) if f.metadata}
    values = {}
    for k, value in data.items():
        try:
            if k not in known:
                raise ValueError(f"unknown key{suggest(k, known)}")
            values[k] = _convert(known[k].type, value, f"{prefix}{k}", problems)
            _check_range(known[k], values[k])
        except ValueError as error:
            values.pop(k, None)
            problems.append(f"{prefix}{k}: {error}")
    return cls(**values)


def _check_range(f: Field, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        if f.metadata.get("limits") and number is not None and not in_range(number, f.metadata):
            finite = "" if math.isfinite(number) else "a finite number, "
            off = ", or null" if type(None) in _alternatives(f.type) else ""
            raise ValueError(f"{number} should be {finite}{f.metadata['range']}{off}")


def _convert(kind: Any, value: Any, name: str, problems: list[str]) -> Any:
    """`value` as type `kind`; problems within a section go to `problems`. Raises ValueError: it is of another type."""
    kinds = _alternatives(kind)
    if value is None and type(None) in kinds:
        return None
    kind = next((k for k in kinds if get_origin(k) is list and isinstance(value, list)), kinds[0])
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return fill(kind, value, f"{name}.", problems)
    if value is None and (origin or kind) in (dict, list):
        return (origin or kind)()
    if origin is dict and isinstance(value, dict):
        return {str(k): fill(args[1], v, f"{name}.{k}.", problems) for k, v in value.items()}
    if origin is dict:
        raise ValueError(f"{value!r} {NOT_A_SECTION}")
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):  # 1 == True
            return value
        raise ValueError(f"{value!r} should be one of {', '.join(map(str, args))}")
    if origin is list and (isinstance(value, list) or args[0] is str):  # one text is a list of one
        return [_convert(args[0], v, name, problems) for v in (value if isinstance(value, list) else [value])]
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError):  # YAML reads 3e-5 in quotes as a text
            return float(value)
    if kind is Any or type(value) is kind:
        return value
    quotes = ": write it in quotes" if kind is str and type(value) in (int, float, bool) else ""
    written, wanted = (WORDS.get(t, t.__name__) for t in (type(value), origin or kind))
    raise ValueError(f"{value!r} is {written}; it should be {wanted}{quotes}")
