"""The suites: suites.toml says what each asks, and of what data; scoring.py scores the answers."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import DataError
from . import scoring
from .answering import Item
from .data import Record
from .scoring import Scored, Tools


@dataclass(frozen=True)
class Suite:
    """A table of suites.toml."""

    title: str
    data: list[str]  # the kinds that it reads, see formats.toml
    questions: dict[str, str]  # variant -> question
    max_new_tokens: int
    score: Callable[[Sequence[Item], Sequence[dict], Tools], Scored]

    def items(self, records: Sequence[Record], prompt: str | None = None) -> list[Item]:
        """Every question about every record, in the records' order; `prompt` stands in for the suite's own. The variant
        `choice` ranks the record's choices, `open` needs its answers, `name` a label."""
        found = []
        for record in records:
            choices = tuple(record.truth.get("choices", ()))
            if "name" in self.questions and not choices:
                raise DataError("--suite labels: photos with several captions; choose a --split with a label each")
            for variant, question in self.questions.items():
                text = (prompt or question).replace("{question}", record.truth.get("question", ""))
                if variant == "choice" and choices:
                    found.append(Item(record, text, variant, choices))
                elif variant != "choice" and (variant != "open" or "answers" in record.truth):
                    found.append(Item(record, text, variant))
        if not found:
            raise DataError("the data holds nothing that this --suite asks")
        return found


TABLES = tomllib.loads(Path(__file__).with_name("suites.toml").read_text(encoding="utf-8"))
SUITES = {name: Suite(score=getattr(scoring, f"score_{name}"), **table) for name, table in TABLES.items()}
