"""BLIP's source lists -> TSV for img2dataset, in bounded memory.

The lists (`laion_synthetic_filtered_large.json`, `ccs_synthetic_filtered_large.json`) are one JSON array of
`{"caption": str, "url": str}` each, the larger one over 10 GB: `json.load` would need several times that.
Here at most one chunk and one element are held at a time.

This folder imports nothing of the package, so that lists can be made on a download machine with plain Python.
`convert_laion.py` and `convert_cc_sbu.py` are this file with their own default names.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

COLUMNS = ("caption", "url")
CHUNK_CHARS = 1 << 20
# A list element is a few hundred characters. What does not parse within this many is damaged, and reading on
# to the end of the file to make sure would put the whole file in memory.
MAX_ELEMENT_CHARS = 1 << 24
PROGRESS_ROWS = 5_000_000

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
# img2dataset's TSV reader ends a row at any line break, quoted or not, so none may reach the file.
_BREAKS = re.compile(r"[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


class ConvertError(Exception):
    """A problem that the user can mend; its text is the whole message."""


def iter_array(file: TextIO, *, chunk_chars: int = CHUNK_CHARS) -> Iterator[object]:
    """Yield the objects of a JSON array `[{...}, {...}, ...]` one by one.

    Args:
        file: text stream at the start of the array.
        chunk_chars: how many characters are read at a time.
    Raises:
        ConvertError: no array, an element that is no object or is damaged (its index is named), text after
            the array, or a file that ends early.
    """
    decoder = json.JSONDecoder()
    buffer, position, ended = "", 0, False

    def refill() -> None:
        nonlocal buffer, position, ended
        chunk = file.read(chunk_chars)
        buffer, position, ended = buffer[position:] + chunk, 0, not chunk

    def peek() -> str:
        """The next character that is not white space, or "" at the end of the file."""
        nonlocal position
        while True:
            position = _JSON_SPACE.match(buffer, position).end()
            if position < len(buffer):
                return buffer[position]
            if ended:
                return ""
            refill()

    def take_object(index: int) -> object:
        nonlocal position
        if not (first := peek()):
            raise ConvertError(f"the file ends before element {index}: is it complete?")
        if first != "{":  # a cut number would parse as a shorter number; a cut object never parses
            raise ConvertError(f"element {index} starts with {first!r}; it must be an object {{...}}")
        while True:
            try:
                value, position = decoder.raw_decode(buffer, position)
                return value
            except json.JSONDecodeError as error:
                if ended or len(buffer) - position > MAX_ELEMENT_CHARS:
                    raise ConvertError(f"element {index} is damaged or cut short: {error.msg}") from error
                refill()

    if (first := peek()) != "[":
        start = f"the file starts with {first!r}" if first else "the file is empty"
        raise ConvertError(f"{start}; a JSON array [...] of objects is needed")
    position += 1
    if peek() == "]":
        raise ConvertError("the array is empty")
    index = 0
    while True:
        yield take_object(index)
        separator = peek()
        position += 1
        if separator == "]":
            break
        if separator != ",":
            found = repr(separator) if separator else "the end of the file"
            raise ConvertError(f"',' or ']' must follow element {index}, not {found}: is the file complete?")
        index += 1
    if extra := peek():
        raise ConvertError(f"there is text after the array, starting with {extra!r}")


def to_row(element: dict, index: int) -> tuple[str, str]:
    """(caption, url) of one element without tabs and line breaks: a run of them becomes one space in a
    caption and nothing in a URL, where they have no meaning.

    Raises:
        ConvertError: a key is missing or its value is not a string; the index is named.
    """
    for key in COLUMNS:
        if key not in element:
            raise ConvertError(f"element {index} has no key {key!r}; its keys are {list(element)}")
        if not isinstance(element[key], str):
            raise ConvertError(f"element {index}: {key!r} is {element[key]!r}; a string is needed")
    return _BREAKS.sub(" ", element["caption"]), _BREAKS.sub("", element["url"])


def convert(source: Path, target: Path, *, chunk_chars: int = CHUNK_CHARS) -> int:
    """Write the list `source` to the TSV `target` (header `caption<TAB>url`, fields quoted where needed).

    `target` appears only when it is complete: rows go to a neighbouring `.part` file that is renamed at the
    end and removed on any error.

    Returns: the number of rows without the header.
    Raises:
        ConvertError: see `iter_array` and `to_row`; or the source is missing, or is the target.
    """
    if not source.is_file():
        raise ConvertError(f"{source}: no such file; dataset/README_1_STAGE.md says where to get it")
    if target.exists() and target.samefile(source):
        raise ConvertError(f"{target}: is also the input; choose another --output")
    if not target.parent.is_dir():
        raise ConvertError(f"{target.parent}: no such folder; make it or choose another --output")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    rows = 0
    try:
        with (
            source.open(encoding="utf-8-sig") as file,
            # "replace": a lone surrogate (half an emoji) is legal JSON but has no UTF-8 form; it becomes "?"
            part.open("w", encoding="utf-8", errors="replace", newline="") as out,
        ):
            writer = csv.writer(out, delimiter="\t", lineterminator="\n")
            writer.writerow(COLUMNS)
            for rows, element in enumerate(iter_array(file, chunk_chars=chunk_chars), start=1):
                writer.writerow(to_row(element, rows - 1))
                if rows % PROGRESS_ROWS == 0:
                    print(f"{source.name}: {rows:,} rows", file=sys.stderr, flush=True)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    except UnicodeDecodeError as error:
        raise ConvertError(f"{source}: not UTF-8 after element {rows}: {error.reason}") from error
    except ConvertError as error:
        raise ConvertError(f"{source}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return rows


def main(stem: str, argv: Sequence[str] | None = None) -> int:
    """Command line of both converters; `stem` names the default files in the working directory.

    Returns: 0, or 2 after a one-line message on stderr.
    """
    parser = argparse.ArgumentParser(description=f"{stem}.json -> TSV of captions and URLs for img2dataset")
    parser.add_argument("--input", type=Path, default=Path(f"{stem}.json"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: the input with .tsv instead of .json")
    args = parser.parse_args(argv)
    target = args.output or args.input.with_suffix(".tsv")
    try:
        rows = convert(args.input, target)
    except (ConvertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: {rows:,} rows")
    return 0
