"""Decide which sentences of a description stay, and fall back on human captions when none stays."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from ..evaluation.failures import LEAK, non_text, repeats

MAX_CAPTIONS = 3  # in one description
SAME = 0.8  # a sentence repeats an earlier one that has this fraction of its words
NEW = 0.5  # a second or third caption has at least this fraction of new words

# The paper's rules drop "I'm sorry I made a mistake" and "I apologize for that".
APOLOGY = re.compile(
    r"\b(?:sorry|apolog\w+|made a mistake|as an ai|language model|i (?:can't|cannot|am unable))\b", re.IGNORECASE
)
SENTENCE_END = re.compile(r"[.!?][\"'”’)]*$")
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
UNFINISHED = re.compile(
    r"(?:[,;:]|\b(?:a|an|the|and|or|of|to|in|at|with|from|for|his|her|their|its|is|are|while|that|which))[.!? ]*$",
    re.IGNORECASE,
)
# Words that say nothing about a photo: every other word of a sentence has to be in a caption.
STOP_WORDS = frozenset(re.findall(r"\w+", (
    "a an the this that these those some it its is are was were be been being has have had there here and or but as in "
    "on at by of to with from into onto his her their he she they them who which while where image picture photo shows "
    "show seen visible"
)))  # fmt: skip


@dataclass(frozen=True)
class Cleaned:
    """The result for one photo."""

    sentences: list[tuple[str, str]] = field(default_factory=list)  # (the model's, why it was dropped or "")
    added: list[str] = field(default_factory=list)  # human captions, where no sentence of the model stays
    lost: str = ""  # why the photo is dropped; "" when it stays

    @property
    def text(self) -> str:
        """The description for stage 2; "" when the photo is dropped."""
        kept = [as_sentence(part) for part, why in self.sentences if not why]
        return "" if self.lost else " ".join(kept or self.added)


def clean(answer: str, captions: Sequence[str], hit_limit: bool = False, checked: bool = True) -> Cleaned:
    """Drop bad sentences from an answer about a photo; fall back on human captions when none stays. Not `checked`
    applies the rules of form alone, as in the paper, where people check the photos afterwards."""
    if not checked:
        sentences = check_sentences(answer, hit_limit)
        return Cleaned(sentences, lost="nothing left" if all(why for _, why in sentences) else "")
    usable = {as_sentence(c): content_words(c) for c in captions if not LEAK.search(c) and not non_text(c)}
    usable = {caption: words for caption, words in usable.items() if words}
    shared = {c: sum(len(words & other) for other in usable.values()) - len(words) for c, words in usable.items()}
    lost = "" if usable else "no human text"
    if len(usable) > 1 and not any(shared.values()):
        usable, lost = {}, "captions disagree"
    sentences = check_sentences(answer, hit_limit, frozenset().union(*usable.values()))
    added: list[str] = []
    if all(why for _, why in sentences):
        # The caption that shares most words, then those with a word in common with the chosen ones and enough new ones.
        said: Set[str] = frozenset()
        for caption in sorted(usable, key=shared.get, reverse=True):
            words = usable[caption]
            fits = not said or (words & said and len(words - said) >= NEW * len(words))
            if fits and len(added) < MAX_CAPTIONS:
                added.append(caption)
                said |= words
    return Cleaned(sentences, added, lost)


def check_sentences(answer: str, hit_limit: bool = False, supported: Set[str] | None = None) -> list[tuple[str, str]]:
    """The sentences of an answer, each with the reason why it is dropped, "" when it stays. With `hit_limit` a last
    sentence without an end mark is unfinished; `supported` are the words of the captions (None: do not compare)."""
    found: list[tuple[str, str]] = []
    earlier: list[Set[str]] = []
    parts = split_sentences(answer)
    for i, part in enumerate(parts):
        words, last = content_words(part), i == len(parts) - 1
        if LEAK.search(part) or non_text(part):
            why = "meaningless"
        elif APOLOGY.search(part):
            why = "apology"
        elif repeats(part) or (words and any(len(words & other) >= SAME * len(words) for other in earlier)):
            why = "repeats"
        elif UNFINISHED.search(part) or (hit_limit and last and not SENTENCE_END.search(part)):
            why = "unfinished"
        elif not words:
            why = "meaningless"
        elif supported is not None and not words <= supported:
            why = "unsupported"
        else:
            why = ""
            earlier.append(words)
        found.append((part, why))
    return found


def split_sentences(text: str) -> list[str]:
    return [part for raw in BETWEEN_SENTENCES.split(text) if (part := " ".join(raw.split()))]


def as_sentence(text: str) -> str:
    """One blank between words, a capital first, an end mark last; a label's "a photo of X" becomes "This is ..."."""
    text = re.sub(r" (?=[.,;:!?])", "", " ".join(text.split())).rstrip(" .,;:-")
    text = re.sub(r"^[Aa] photo of ", "This is a photo of ", text)
    return text[:1].upper() + text[1:] + ("" if not text or SENTENCE_END.search(text) else ".")


def content_words(text: str) -> frozenset[str]:
    """The words without stop words, in a crude base form: "Running dogs" -> {run, dog}."""
    words = set(re.findall(r"\w\w+", text.lower())) - STOP_WORDS
    bases = (re.sub(r"(?<=\w{3})(?:ing|es|ed|s|e)$", "", word) for word in words)
    return frozenset(re.sub(r"(.)\1$", r"\1", base) for base in bases)
