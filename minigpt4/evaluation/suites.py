"""What each suite asks, what data it reads, and who scores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import DataError
from . import scoring, vqa_data
from .answering import Item
from .records import Record
from .scoring import Scored, Tools

PHOTOS = ("photos", "karpathy", "coco captions", "coco instances")
SHORT, DETAILED = "Describe this image in one sentence.", "Describe this image in detail."
POEM = "Can you craft a beautiful poem about this image?"
ABILITIES = {  # the paper's prompts
    "meme": "Explain why this meme is funny.",
    "recipe": "How should I make something like this?",
    "advertisement": "Help me draft a professional advertisement for this.",
    "poem": POEM,
}
ASK_SHORTLY = "Based on the image, answer this question with a word or a short phrase: {question}"


@dataclass(frozen=True)
class Suite:
    """Args:
    kinds: what data it reads, see data.WHERE.
    questions: variant -> question; `{question}` is the record's own.
    score: items and their answers (see answering.answer_all) -> Scored.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    questions: dict[str, str]
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


NAME_IT = "What is in this picture?"
SUITES = {
    "caption": Suite("caption", "Captions", PHOTOS, {"": SHORT}, 60, scoring.score_caption),
    "coverage": Suite("coverage", "Things named", PHOTOS, {"": SHORT}, 60, scoring.score_coverage),
    "chair": Suite("chair", "Hallucination", PHOTOS, {"short": SHORT, "long": DETAILED}, 300, scoring.score_chair),
    "failure": Suite(
        "failure", "Broken answers", (*PHOTOS, "folder"), {"detailed": DETAILED, "poem": POEM}, 300,
        scoring.score_failure,
    ),
    "vqa": Suite(
        "vqa", "Questions", vqa_data.KINDS, {"open": ASK_SHORTLY, "choice": ASK_SHORTLY}, 20, scoring.score_vqa
    ),
    "labels": Suite("labels", "Labels", ("photos",), {"name": NAME_IT, "choice": NAME_IT}, 40, scoring.score_labels),
    "abilities": Suite("abilities", "Abilities", (*PHOTOS, "folder"), ABILITIES, 300, scoring.score_abilities),
}  # fmt: skip
