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
    title: str
    kinds: tuple[str, ...]  # what data it reads, see data.WHERE
    questions: dict[str, str]  # variant -> question; `{question}` is the record's own
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


FOLDER = (*PHOTOS, "folder")
SUITES = {
    "caption": Suite("Captions", PHOTOS, {"": SHORT}, 60, scoring.score_caption),
    "coverage": Suite("Things named", PHOTOS, {"": SHORT}, 60, scoring.score_coverage),
    "chair": Suite("Hallucination", PHOTOS, {"short": SHORT, "long": DETAILED}, 300, scoring.score_chair),
    "failure": Suite("Broken answers", FOLDER, {"detailed": DETAILED, "poem": POEM}, 300, scoring.score_failure),
    "vqa": Suite("Questions", QUESTIONS, {"open": ASK_SHORTLY, "choice": ASK_SHORTLY}, 20, scoring.score_vqa),
    "labels": Suite("Labels", ("photos",), {"name": NAME_IT, "choice": NAME_IT}, 40, scoring.score_labels),
    "abilities": Suite("Abilities", FOLDER, ABILITIES, 300, scoring.score_abilities),
}
