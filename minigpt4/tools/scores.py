"""Scores of descriptions: are the right things named, and is the text whole. Words are compared, no model judges.

A picture is what the sample set says of it: `{"objects": [{"name", "synonyms", ...}], "scene", "scene_synonyms",
"caption"}`.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

# What a reader of the answer should never see: special tokens, and the other side of the conversation.
LEAK = re.compile(
    r"<\|[^|>\s]*\|>|</?s>|<unk>|</?Img>|<ImageHere>|###|\b(?:human|assistant|user|system)\s*:|"
    r"^\s*(?:human|assistant|user|system)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
Vocabulary = tuple[tuple[str, tuple[str, ...]], ...]  # ((name, synonyms), ...)


@dataclass(frozen=True)
class Mention:
    """An object's name in an answer: `answer[start:end]`, and whether the picture has such an object."""

    start: int
    end: int
    names: frozenset[str]  # the objects that go by this word
    right: bool


def word_forms(term: str) -> set[str]:
    """A term in lower case, hyphens as blanks, and its plurals: wolf -> wolf, wolfs, wolfes, wolves."""
    term = _plain(term)
    forms = {term, term + "s", term + "es"}
    if term.endswith("y"):
        forms.add(term[:-1] + "ies")
    if term.endswith(("f", "fe")):
        forms.add(term.removesuffix("e")[:-1] + "ves")
    return forms


@cache
def _terms(vocabulary: Vocabulary) -> tuple[re.Pattern, dict[str, frozenset[str]]]:
    """One pattern for every word form of every object, the longest first, and whose word each is."""
    owners: dict[str, set[str]] = {}
    for name, synonyms in vocabulary:
        for term in (name, *synonyms):
            for form in word_forms(term):
                owners.setdefault(form, set()).add(name)
    # Longest first, so that "fire engine" is not also an "engine".
    forms = sorted(owners, key=lambda form: (-len(form), form))
    pattern = "|".join(re.escape(form).replace(r"\ ", r"[\s-]+") for form in forms) or r"(?!)"
    whole = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
    return whole, {form: frozenset(names) for form, names in owners.items()}


def vocabulary_of(pictures: Iterable[dict]) -> Vocabulary:
    """Every object of these pictures once, with its synonyms, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for picture in pictures:
        for thing in picture["objects"]:
            found.setdefault(thing["name"], set()).update(thing.get("synonyms", ()))
    return tuple((name, tuple(sorted(found[name]))) for name in sorted(found))


def mentions(answer: str, picture: dict, vocabulary: Vocabulary) -> list[Mention]:
    """Where `answer` names objects of the vocabulary, as whole words, singular or plural, from left to right.

    A mention is right when the picture has an object of that name. A word that is not an object here but stands in
    the picture's own caption (a sun that the scene shows) is no mention at all.
    """
    pattern, owners = _terms(vocabulary)
    present = {thing["name"] for thing in picture["objects"]}
    caption = pattern.finditer(picture.get("caption", ""))
    described = {name for match in caption for name in owners[_plain(match.group())]}
    found = []
    for match in pattern.finditer(answer):
        names = owners[_plain(match.group())]
        if names & present or not names & described:
            found.append(Mention(match.start(), match.end(), names, bool(names & present)))
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text.lower())


def objects_right(answer: str, picture: dict, vocabulary: Vocabulary) -> set[str]:
    """The picture's objects whose name or synonym occurs in the answer."""
    present = {thing["name"] for thing in picture["objects"]}
    named = {name for mention in mentions(answer, picture, vocabulary) if mention.right for name in mention.names}
    return named & present


def objects_wrong(answer: str, picture: dict, vocabulary: Vocabulary) -> set[str]:
    """Objects of the vocabulary that the answer names though the picture has none: each once, in the answer's words."""
    found: dict[frozenset[str], str] = {}
    for mention in mentions(answer, picture, vocabulary):
        if not mention.right:
            found.setdefault(mention.names, answer[mention.start : mention.end].lower())
    return set(found.values())


def scene_right(answer: str, picture: dict) -> bool:
    """Whether the scene's name or one of its synonyms occurs in the answer as a whole word."""
    words = (picture["scene"], *picture.get("scene_synonyms", ()))
    forms = "|".join(re.escape(form) for word in words for form in word_forms(word))
    return re.search(rf"(?<!\w)(?:{forms})(?!\w)", answer, re.IGNORECASE) is not None


def repeats(answer: str) -> bool:
    """Some four words in a row occur three times or more, or a sentence occurs twice."""
    words = re.findall(r"\w+(?:'\w+)?", answer.lower())
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    sentences = Counter(" ".join(re.findall(r"\w+", s)) for s in re.split(r"[.!?\n]+", answer.lower()))
    sentences.pop("", None)
    return max(fours.values(), default=0) >= 3 or max(sentences.values(), default=0) >= 2


def breaks_off(answer: str, hit_limit: bool = False) -> bool:
    """The answer is empty, ran into the token limit, does not end in . ! or ?, or shows a role or special token."""
    ended = re.search(r"[.!?][\"'”’)]?$", answer.strip())
    return hit_limit or not ended or LEAK.search(answer) is not None


def judge(answer: str, hit_limit: bool, picture: dict, vocabulary: Vocabulary) -> dict:
    """Everything said of one answer, as plain values for results.json."""
    wrong, right = objects_wrong(answer, picture, vocabulary), objects_right(answer, picture, vocabulary)
    again, off = repeats(answer), breaks_off(answer, hit_limit)
    return {
        "answer": answer, "right": sorted(right), "wrong": sorted(wrong), "scene_right": scene_right(answer, picture),
        "hit_limit": hit_limit, "repeats": again, "breaks_off": off, "broken": again or off,
    }  # fmt: skip


# What is summed up: (numerator, denominator) of one judged picture.
MEASURES: dict[str, Callable[[dict, dict], tuple[float, float]]] = {
    "objects_right": lambda judged, picture: (len(judged["right"]), len(picture["objects"])),
    "objects_wrong": lambda judged, picture: (len(judged["wrong"]), 1),
    "scene_right": lambda judged, picture: (judged["scene_right"], 1),
    "broken": lambda judged, picture: (judged["broken"], 1),
    "repeats": lambda judged, picture: (judged["repeats"], 1),
    "breaks_off": lambda judged, picture: (judged["breaks_off"], 1),
}


def summarize(pictures: Sequence[dict], judged: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Each measure over all pictures: {"value", "low", "high"}, the last two a 95 % bootstrap interval.

    `objects_right` is a share of all objects, `objects_wrong` a count an answer, the others are shares of answers.
    """
    return {name: _interval(_fractions(name, pictures, judged)) for name in MEASURES}


def difference(pictures: Sequence[dict], first: Sequence[dict], second: Sequence[dict]) -> dict[str, dict[str, float]]:
    """second - first for each measure, with the interval of the difference over the same resampled pictures."""
    found = {}
    for name in MEASURES:
        found[name] = _interval(_fractions(name, pictures, second), _fractions(name, pictures, first))
    return found


def objects_right_swapped(pictures: Sequence[dict], answers: Sequence[str], vocabulary: Vocabulary) -> float | None:
    """`objects_right` when every answer is held against all the *other* pictures: what naming blindly would get."""
    pairs = [(p, a) for i, p in enumerate(pictures) for j, a in enumerate(answers) if i != j]
    total = sum(len(p["objects"]) for p, _ in pairs)
    return sum(len(objects_right(a, p, vocabulary)) for p, a in pairs) / total if total else None


def _fractions(name: str, pictures: Sequence[dict], judged: Sequence[dict]) -> list[tuple[float, float]]:
    return [MEASURES[name](j, p) for j, p in zip(judged, pictures, strict=True)]


def _interval(
    plus: list[tuple[float, float]], minus: list[tuple[float, float]] | None = None, draws: int = 2000
) -> dict[str, float]:
    """The ratio of sums (or the difference of two), and its 2.5 and 97.5 percentiles over resampled pictures."""

    def ratio(rows: Sequence[tuple[float, float]]) -> float:
        below = sum(d for _, d in rows)
        return sum(n for n, _ in rows) / below if below else 0.0

    def value(chosen: Sequence[int]) -> float:
        first = ratio([minus[i] for i in chosen]) if minus else 0.0
        return ratio([plus[i] for i in chosen]) - first

    count, rng = len(plus), random.Random(0)
    if not count:
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    drawn = sorted(value(rng.choices(range(count), k=count)) for _ in range(draws))
    low, high = drawn[round(0.025 * (draws - 1))], drawn[round(0.975 * (draws - 1))]
    return {"value": value(range(count)), "low": low, "high": high}
