"""Findings, and the page that shows them."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

OK, LOOK, WRONG = "ok", "look", "wrong"


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
    return {mark: sum(finding.mark == mark for finding in findings) for mark in (OK, LOOK, WRONG)}


def page(findings: Sequence[Finding], names: int, width: int) -> str:
    """One column of marks, one of names (`names` wide), and texts wrapped at `width`."""
    indent, lines, section = " " * (2 + 7 + names + 2), [], None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        mark = finding.mark if finding.mark == OK else finding.mark.upper()
        head = f"  {mark:7}{finding.name:{names}}  "
        if len(head) > len(indent):  # a long key has a line of its own
            lines.append(head.rstrip())
            head = indent
        for text in [*finding.text.split("\n"), *([f"-> {finding.do}"] if finding.do else [])]:
            wrapper = textwrap.TextWrapper(
                width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
            lines += wrapper.wrap(text)
            head = indent
    return "\n".join(lines[1:])
