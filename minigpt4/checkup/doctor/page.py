"""The doctor's page: rows with a mark each, as text for people or JSON for programs."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

OK, LOOK, WRONG = "ok", "look", "wrong"
SHOWN = {OK: "ok", LOOK: "LOOK", WRONG: "WRONG"}
COLOURS = {OK: "32", LOOK: "33", WRONG: "1;31"}


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Args:
        section: heading it stands under.
        mark: ok; look (may be meant, a person should see it); wrong (it will not work as it should).
        name: the config's key, or a word.
        text: what was found.
        do: what to do about it; empty when all is well.
    """

    section: str
    mark: str
    name: str
    text: str
    do: str = ""


def counts(rows: Sequence[Row]) -> dict[str, int]:
    return {mark: sum(row.mark == mark for row in rows) for mark in SHOWN}


def as_json(rows: Sequence[Row], **facts) -> dict:
    """For `--json`: the facts, how many rows of each mark, and the rows."""
    return {**facts, "counts": counts(rows), "rows": [asdict(row) for row in rows]}


def name_width(rows: Sequence[Row]) -> int:
    """Columns for the names; a few long ones need not make it wide."""
    return min(max((len(row.name) for row in rows), default=0), 26)


def page(rows: Sequence[Row], names: int, width: int, colour: bool = False) -> str:
    """Marks in one column and names in the next, so that the eye finds the wrong ones; texts wrapped at `width`."""
    indent = 2 + 7 + names + 2
    lines: list[str] = []
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            lines += ["", section]
        mark = f"{SHOWN[row.mark]:7}"
        if colour:
            mark = f"\033[{COLOURS[row.mark]}m{mark}\033[0m"
        first, *more = _wrapped(row.text, width - indent)
        name = f"{row.name:{names}}"
        if len(row.name) > names:  # a long key has a line of its own
            lines.append(f"  {mark}{row.name}")
            lines.append(" " * indent + first)
        else:
            lines.append(f"  {mark}{name}  {first}".rstrip())
        lines += [" " * indent + line for line in more]
        lines += [" " * indent + line for line in _wrapped(f"-> {row.do}", width - indent, "   ")] if row.do else []
    return "\n".join(lines[1:])


def _wrapped(text: str, width: int, hanging: str = "") -> list[str]:
    lines = []
    for paragraph in text.split("\n"):
        lines += textwrap.wrap(
            paragraph, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """The last line of the page."""
    n = counts(rows)
    parts = [f"{n[WRONG]} wrong" if n[WRONG] else "Nothing wrong", f"{n[LOOK]} to look at" if n[LOOK] else ""]
    return ", ".join(filter(None, parts)) + "."


def terminal() -> tuple[int, bool]:
    """(width of the page in columns, whether to colour it)."""
    columns = shutil.get_terminal_size((100, 24)).columns
    return max(min(columns, 100), 72), sys.stdout.isatty()
