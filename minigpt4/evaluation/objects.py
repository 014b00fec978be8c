"""Which things a text names, by word lists.

A list has a line for each thing: its name, then the other words for it. Words are found whole, in any case, in singular
or plural, the longest first: "hot dog" is no dog. A line that begins with `!` lists words that hold others but are none
of them ("home plate").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..common.errors import DataError
from ..common.paths import read_text

HERE = Path(__file__).parent
COCO_SYNONYMS, THINGS = HERE / "coco_synonyms.txt", HERE / "things.txt"
NOTHING = "!"  # the name of what is found and not counted
PARENTS = {"man": "person", "woman": "person", "child": "person", "boy": "child", "girl": "child"}
Vocabulary = tuple[tuple[str, tuple[str, ...]], ...]  # ((name, words), ...)


@dataclass(frozen=True)
class Mention:
    """A thing's name in a text: `text[start:end]`, and whether the picture has such a thing."""

    start: int
    end: int
    names: frozenset[str]  # the things that go by this word
    right: bool


def read_vocabulary(*files: str | Path) -> Vocabulary:
    """Word lists joined; see the module's text. A word of a later file's `!` line leaves the things of earlier files.
    Raises DataError for a file that cannot be read, or holds no line."""
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            lines = read_text(file).splitlines()
        except OSError as error:
            raise DataError(f"{file}: should be a text file, a thing and its synonyms a line: {error}") from None
        for line in lines:
            words = [" ".join(w.lower().split()) for w in line.lstrip("!").split(",") if w.strip()]
            if not words or line.startswith("#"):
                continue
            name = NOTHING if line.startswith("!") else words[0]
            if name == NOTHING:
                found = {k: [w for w in known if w not in words or w == k] for k, known in found.items()}
            found.setdefault(name, []).extend(words)
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: no line with a thing and its synonyms")
    return tuple((name, tuple(words)) for name, words in found.items() if name not in found.get(NOTHING, ()))


def things_vocabulary() -> Vocabulary:
    """COCO's 80 and the further things of everyday photos. A boy's words name a child and a person too (PARENTS)."""
    words = {name: list(synonyms) for name, synonyms in read_vocabulary(COCO_SYNONYMS, THINGS)}
    for name in words:
        for above in ancestors(name):
            words[above] += words[name]
    return tuple((name, tuple(synonyms)) for name, synonyms in words.items())


def ancestors(name: str) -> list[str]:
    """boy -> [child, person]"""
    return [PARENTS[name], *ancestors(PARENTS[name])] if name in PARENTS else []


def finest(names: Iterable[str]) -> set[str]:
    """Without the ancestors of others: {boy, child, person, dog} -> {boy, dog}."""
    names = set(names)
    return names - {above for name in names for above in ancestors(name)}


def word_forms(term: str) -> set[str]:
    """A term in lower case, hyphens as blanks, and its plurals: wolf -> wolf, wolfs, wolfes, wolves."""
    term = _plain(term)
    forms = {term, term + "s", term + "es"}
    if term.endswith("y"):
        forms.add(term[:-1] + "ies")
    if term.endswith(("f", "fe")):
        forms.add(term.removesuffix("e")[:-1] + "ves")
    return forms


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text.lower())


@cache
def _terms(vocabulary: Vocabulary) -> tuple[re.Pattern, dict[str, frozenset[str]]]:
    """One pattern for every word form of every thing, and whose word each is."""
    owners: dict[str, frozenset[str]] = {}
    for name, words in vocabulary:
        for form in set().union(*map(word_forms, (name, *words))):
            owners[form] = owners.get(form, frozenset()) | {name}
    forms = sorted(owners, key=len, reverse=True)  # "fire engine" is not also an "engine"
    pattern = "|".join(re.escape(form).replace(r"\ ", r"[\s-]+") for form in forms) or r"(?!)"
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE), owners


def find(text: str, vocabulary: Vocabulary, present: Iterable[str] = ()) -> list[Mention]:
    """Every mention of a thing in `text`, from left to right; right when `present` has the thing, or one above or below
    it: a woman is right where someone saw a person or a woman, wrong where all saw a man."""
    pattern, owners = _terms(vocabulary)
    present = set(present)
    fitting = present | {above for name in present for above in ancestors(name)}
    found = []
    for match in pattern.finditer(text):
        names = owners[_plain(match.group())]
        right = any(name in fitting or not present.isdisjoint(ancestors(name)) for name in finest(names))
        if names != {NOTHING}:
            found.append(Mention(*match.span(), names, right))
    return found


def named(text: str, vocabulary: Vocabulary) -> set[str]:
    """Every thing that the text names, with those above it: "a boy" -> {boy, child, person}."""
    return {name for mention in find(text, vocabulary) for name in mention.names} - {NOTHING}


def seen(text: str, vocabulary: Vocabulary) -> set[str]:
    """The things that a text names, each by the most exact word of it: "a boy, a person" -> {boy, person}."""
    return {name for mention in find(text, vocabulary) for name in finest(mention.names)} - {NOTHING}


def main_things(captions: Sequence[str], vocabulary: Vocabulary) -> dict[str, int]:
    """The things that at least half of a photo's captions name -> how many do, the most first; where there are none,
    what most of them name, if that is two captions or more. People are named as exactly as half of them agree."""
    counts = Counter(name for caption in captions for name in named(caption, vocabulary))
    main = {name for name in counts if 2 * counts[name] >= len(captions)}
    main = main or {name for name in counts if counts[name] == max(counts.values()) >= 2}
    return {name: counts[name] for name in sorted(finest(main), key=lambda name: (-counts[name], name))}


def label_of(caption: str) -> str:
    """ "a photo of an emu" -> "emu": the class of a photo whose one caption was made from a label. Parts and sides
    ("crocodile head") are the thing."""
    label = re.sub(r"^a photo of (?:an? )?", "", caption.strip().lower()).rstrip(".")
    return re.sub(r"(?: from the side| body| head|(?<=\w) face)$", "", label)


def labels_vocabulary(labels: Iterable[str]) -> Vocabulary:
    """Each label as a thing of its own: a pigeon is named by "pigeon", not by "bird"."""
    return tuple((label, (label.removesuffix("s"),)) for label in sorted(set(labels)))


def swapped_share(
    answers: Sequence[str], wanted: Sequence[Sequence[str]], vocabulary: Vocabulary, of: str = "pictures"
) -> float | None:
    """The share of pictures (or of wanted things) named, were every answer given for another picture: what guesses
    get."""
    said = [named(answer, vocabulary) for answer in answers]
    counts = [(len(s & set(w)), len(set(w))) for i, s in enumerate(said) for j, w in enumerate(wanted) if i != j and w]
    if of == "pictures":
        counts = [(hits > 0, 1) for hits, _ in counts]
    total = sum(count for _, count in counts)
    return sum(hits for hits, _ in counts) / total if total else None
