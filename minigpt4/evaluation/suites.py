"""What each suite asks, what data it reads, and who scores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import DataError
from . import scoring
from .answering import Item
from .data import PHOTOS, QUESTIONS, Record
from .scoring import Scored, Tools

SHORT, DETAILED = "Describe this image in one sentence.", "Describe this image in detail."
POEM = "Can you craft a beautiful poem about this image?"
ABILITIES = {  # the paper's prompts
    "meme": "Explain why this meme is funny.",
    "recipe": "How should I make something like this?",
    "advertisement": "Help me draft a professional advertisement for this.",
    "poem": POEM,
}
ASK_SHORTLY = "Based on the image, answer this question with a word or a short phrase: {question}"
NAME_IT = "What is in this picture?"


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    kinds: tuple[str, ...]  # what data it reads, see data.WHERE
    questions: dict[str, str]  # variant -> question; `{question}` is the record's own
    max_new_tokens: int
    score: Callable[[Sequence[Item], Sequence[dict], Tools], Scored]

    def items(self, records: Sequence[Record], prompt: str | None = None) -> list[Item]:
        """Every question about every record, in the records' order; `prompt` stands in for the suite's own."""
        found = []
        for record in records:
            choices = tuple(record.truth.get("choices", ()))
            if self.name == "labels" and not choices:
                raise DataError("--suite labels: photos with several captions; choose a --split with a label each")
            for variant, question in self.questions.items():
                text = (prompt or question).replace("{question}", record.truth.get("question", ""))
                if variant == "choice" and choices:
                    found.append(Item(record, text, variant, choices))
                elif variant != "choice" and (self.name != "vqa" or "answers" in record.truth):
                    found.append(Item(record, text, variant))
        if not found:
            raise DataError(f"--suite {self.name}: the data holds nothing to ask")
        return found


FOLDER = (*PHOTOS, "folder")
SUITES = {suite.name: suite for suite in (
    Suite("caption", "Captions", PHOTOS, {"": SHORT}, 60, scoring.score_caption),
    Suite("coverage", "Things named", PHOTOS, {"": SHORT}, 60, scoring.score_coverage),
    Suite("chair", "Hallucination", PHOTOS, {"short": SHORT, "long": DETAILED}, 300, scoring.score_chair),
    Suite("failure", "Broken answers", FOLDER, {"detailed": DETAILED, "poem": POEM}, 300, scoring.score_failure),
    Suite("vqa", "Questions", QUESTIONS, {"open": ASK_SHORTLY, "choice": ASK_SHORTLY}, 20, scoring.score_vqa),
    Suite("labels", "Labels", ("photos",), {"name": NAME_IT, "choice": NAME_IT}, 40, scoring.score_labels),
    Suite("abilities", "Abilities", FOLDER, ABILITIES, 300, scoring.score_abilities),
)}  # fmt: skip
