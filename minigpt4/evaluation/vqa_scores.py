"""The official accuracy of VQA sets, and their way of making answers comparable.

Source: vqaEval.py of the VQA challenge (processPunctuation, processDigitArticle), A-OKVQA's evaluation. Unlike there,
answers are brought into form even where all ten people agree: else "Yes." would be wrong.
"""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {word: str(max(0, i - 1)) for i, word in enumerate(NUMBERS)}
ARTICLES = {"a", "an", "the"}


def _without_apostrophes(word: str) -> list[str]:
    """Every way to leave out at least one apostrophe; of words with several, one stays (as in the original's table)."""
    parts = word.split("'")
    ways = list(product(("'", ""), repeat=len(parts) - 1))  # the first leaves out none, the last all
    ways = ways[1:] if len(parts) == 2 else ways[1:-1]
    return ["".join(map("".join, zip(parts, (*way, ""), strict=True))) for way in ways]


# The file has the right forms; without one or all of their apostrophes words are brought into these. Words that mean
# something else without it ("she'd", "we'd", "he'll") are not in the original's table either.
CONTRACTED = Path(__file__).with_name("contractions.txt").read_text(encoding="utf-8").split()
CONTRACTIONS = {variant: word for word in CONTRACTED for variant in _without_apostrophes(word)}


def normalize(answer: str) -> str:
    """An answer as the VQA challenge compares it: "Two dogs, a cat." -> "2 dogs cat"."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    number = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in PUNCTUATION:
        apart = mark + " " in answer or " " + mark in answer or number
        text = text.replace(mark, "" if apart else " ")
    text = re.sub(r"(?!<=\d)\.(?!\d)", "", text)  # the original's pattern, slip included: it never looks behind
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA's accuracy against the answers of (ten) people: the mean, over leaving out each of them, of
    min(1, how many of the others gave this answer / 3)."""
    same = [normalize(person) == normalize(answer) for person in people]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def counted_accuracy(answer: str, people: Sequence[str]) -> float:
    """A-OKVQA's: min(1, how many gave this answer / 3), nobody left out; compared after `normalize`."""
    return min(1.0, sum(normalize(person) == normalize(answer) for person in people) / 3)


def exact(answer: str, people: Sequence[str]) -> float:
    """GQA's: the one answer, or not."""
    return float(any(normalize(person) == normalize(answer) for person in people))


RULES = {"soft": soft_accuracy, "counted": counted_accuracy, "exact": exact}


def holds(answer: str, people: Sequence[str], rule: str) -> float:
    """The best that a part of the answer would get under the rule: for models that answer in sentences."""
    text = f" {normalize(answer)} "
    parts = [p for p in set(people) if normalize(p) and f" {normalize(p)} " in text]
    return max((RULES[rule](p, people) for p in parts), default=0.0)
