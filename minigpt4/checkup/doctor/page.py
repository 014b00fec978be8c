"""Findings, and the page that shows them: text for people, JSON for programs."""

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

OK, LOOK, WRONG = "ok", "look", "wrong"
SHOWN = {OK: "ok", LOOK: "LOOK", WRONG: "WRONG"}
COLOURS = {OK: "32", LOOK: "33", WRONG: "1;31"}


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        mark: ok; look (it may be intended, a person should decide); wrong (it will not work as it should).
        text: what was found.
        do: what to do about it; empty when all is well.
        name: the config's key, or a word; empty: that of the check.
        section: heading on the page; filled in from the table of checks.
    """

    mark: str
    text: str
    do: str = ""
    name: str = ""
    section: str = ""


def of_error(error: Exception | str, name: str = "") -> Finding:
    """A user error, `KEY: what is wrong; what to do`, as a finding. Its name is `name`, or else KEY."""
    key = re.match(r"((?:model|run|datasets)(?:\.\w+)+): ", str(error))
    text, _, do = str(error).removeprefix(key[0] if key else "").rpartition("; ")
    return Finding(WRONG, text or do, do if text else "", name or (key[1] if key else ""))


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings have each mark."""
    return {mark: sum(finding.mark == mark for finding in findings) for mark in SHOWN}


def page(findings: Sequence[Finding], names: int, width: int, colour: bool = False) -> str:
    """One column of marks, one of names (`names` wide), and texts wrapped at `width`."""
    indent = " " * (2 + 7 + names + 2)
    lines, section = [], None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        mark = f"{SHOWN[finding.mark]:7}"
        if colour:
            mark = f"\033[{COLOURS[finding.mark]}m{mark}\033[0m"
        texts = _wrapped(finding.text, width - len(indent))
        texts += _wrapped(f"-> {finding.do}", width - len(indent), "   ") if finding.do else []
        if len(finding.name) > names:  # a long key has a line of its own
            lines.append(f"  {mark}{finding.name}")
        else:
            lines.append(f"  {mark}{finding.name:{names}}  {texts.pop(0)}".rstrip())
        lines += [indent + text for text in texts]
    return "\n".join(lines[1:])


def _wrapped(text: str, width: int, hanging: str = "") -> list[str]:
    wrapper = textwrap.TextWrapper(width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
    return [line for paragraph in text.split("\n") for line in wrapper.wrap(paragraph) or [""]]


def verdict(findings: Sequence[Finding]) -> str:
    """The last line of the page."""
    n = counts(findings)
    return (f"{n[WRONG]} wrong" if n[WRONG] else "Nothing wrong") + (f", {n[LOOK]} to look at." if n[LOOK] else ".")


def terminal() -> tuple[int, bool]:
    """(width of the page in columns, whether to colour it)."""
    return max(min(shutil.get_terminal_size((100, 24)).columns, 100), 72), sys.stdout.isatty()
