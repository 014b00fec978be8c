"""What a sentence says, as far as word lists can tell: which words, how many of a thing, which colours, which postures.

Two sentences about one photo *conflict* when they say different counts of a thing, other people or animals in the place
of each other, different colours of one thing, or that one sits who walks in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..evaluation.objects import COCO_SYNONYMS, Mention, ancestors, find, finest, read_vocabulary, things_vocabulary
from .words import (
    ADJECTIVES,
    COLOURS,
    DETERMINERS,
    NUMBERS,
    ONE,
    PEOPLE,
    PLURALS,
    POSTURES,
    PREPOSITIONS,
    concept,
    content,
    follows,
    words,
)  # fmt: skip

MANY = math.inf  # more than one, not said how many
LOTS = 1000.0  # three or more: several, a crowd
ANIMALS = frozenset(
    ("dog", "cat", "bird", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "monkey", "rabbit", "deer",
     "squirrel", "lion", "turtle", "frog", "snake", "lizard", "insect", "butterfly", "spider")
)  # fmt: skip
BEINGS = frozenset(map(concept, PEOPLE | ANIMALS))
GROUPS = {"couple": 2.0, "pair": 2.0, "family": MANY, "team": MANY, "band": MANY}
GROUPS |= dict.fromkeys(("crowd", "group", "several", "many", "lots", "bunch"), LOTS)
VAGUE = frozenset({"face", "faces"})  # parts of people, whom they do not count
SINGULAR_S = ("ss", "us", "is")


@dataclass(frozen=True)
class Claims:
    """What one sentence says.

    Args:
        content: its content words in order, as written.
        meant: the concepts of these words.
        said: these, and all that follows from them.
        things: what it names, each as exactly as it does: boy, dog.
        implied: these, with those above: child, person.
        counts: person or animal or countable thing -> how many; MANY for a plural without number.
        colours: concept of a thing -> colours that stand before it.
        postures: sit, stand, ...
    """

    content: tuple[str, ...]
    meant: frozenset[str]
    said: frozenset[str]
    things: frozenset[str]
    implied: frozenset[str]
    counts: dict[str, float]
    colours: dict[str, frozenset[str]]
    postures: frozenset[str]


@cache
def _countable() -> frozenset[str]:
    """COCO's objects, people and animals; "rocks" and "a rock" do not contradict each other."""
    return frozenset(name for name, _ in read_vocabulary(COCO_SYNONYMS)) | PEOPLE | ANIMALS


_things = cache(things_vocabulary)  # it is made anew at each call


@cache
def things_in(text: str) -> tuple[Mention, ...]:
    """Every mention of a thing, from left to right."""
    return tuple(find(text, _things()))


@cache
def read_claims(text: str) -> Claims:
    """What `text` says; for one sentence, or one caption."""
    said = content(text)
    found = things_in(text)
    things = finest({name for mention in found for name in mention.names})
    implied = things | {above for name in things for above in ancestors(name)}
    return Claims(
        content=tuple(said),
        meant=frozenset(map(concept, said)),
        said=frozenset().union(*map(follows, said)) if said else frozenset(),
        things=frozenset(things),
        implied=frozenset(implied),
        counts=_counts(text),
        colours=_colours(text),
        postures=frozenset(concept(w) for w in said) & {concept(w) for w in POSTURES},
    )


def _counts(text: str) -> dict[str, float]:
    """How many of each thing: "two men and a dog" -> {man: 2, dog: 1}. "The dog" of a sentence that has named a dog is
    the same one."""
    counts: dict[str, float] = {}
    before, end = [], 0
    for mention in things_in(text):
        kinds = finest(mention.names) & _countable()
        before = words(text[end : mention.start])[-4:]
        end = mention.end
        surface = words(text[mention.start : mention.end])[-1]
        if not kinds or surface in VAGUE:
            continue
        (name, *_) = sorted(kinds)
        number = _number(surface, before)
        if name in counts and before and before[-1] in {"the", "his", "her", "its", "their"}:
            continue
        counts[name] = counts.get(name, 0) + number
    return counts


def _number(surface: str, before: Sequence[str]) -> float:
    if surface in GROUPS:
        return GROUPS[surface]
    plural = surface in PLURALS or (surface.endswith("s") and not surface.endswith(SINGULAR_S))
    for word in reversed(before):
        if word in NUMBERS:
            return float(NUMBERS[word])
        if word in GROUPS:
            return GROUPS[word]
        if word in ONE or (word in PREPOSITIONS and word != "of"):
            break
    return MANY if plural else 1.0


def _colours(text: str) -> dict[str, frozenset[str]]:
    """ "a black and white dog" -> {dog: {black, white}}: the colours right before a thing, adjectives between."""
    found: dict[str, frozenset[str]] = {}
    run: set[str] = set()
    for word in words(text):
        if word in COLOURS:
            run.add(concept(word))
        elif run and word not in ADJECTIVES and word != "and":
            if word not in DETERMINERS | PREPOSITIONS:
                for name in follows(word):
                    found[name] = found.get(name, frozenset()) | run
            run = set()
    return found


def conflict(a: Claims, b: Claims, together: Sequence[Claims] = (), colours: bool = True) -> bool:
    """Whether both cannot well be said of one photo.

    Args:
        together: the captions of the photo: people or animals that one of them names together may both be there.
        colours: whether two colours of a thing count: people see "tan" and "yellow" in the same dog.
    """
    for name in {*a.counts, *b.counts}:
        left, right = count_of(a, name), count_of(b, name)
        if left and right and not counts_fit(left, right):
            return True
    for family in (PEOPLE, ANIMALS):
        left, right = _unmatched(a, b, family), _unmatched(b, a, family)
        if left and right and not any(left | right <= c.implied for c in together):
            return True
    alone = max(count_of(a, "person"), count_of(b, "person")) <= 1
    if alone and a.postures and b.postures and not a.postures & b.postures:
        return True
    for name in a.colours.keys() & b.colours.keys() if colours else ():
        left, right = a.colours[name], b.colours[name]
        if not left <= right and not right <= left:
            return True
    return False


def _unmatched(a: Claims, b: Claims, family: frozenset[str]) -> frozenset[str]:
    """The kinds that `a` names and `b` does not, neither as exactly nor less or more so."""
    return frozenset(k for k in a.things & family if k not in b.implied and b.things.isdisjoint(ancestors(k)))


def count_of(claims: Claims, name: str) -> float:
    """How many of a thing are named, 0 for none; those of the kinds below it counted too: a boy is a child."""
    return sum(n for kind, n in claims.counts.items() if kind == name or name in ancestors(kind))


def counts_fit(left: float, right: float) -> bool:
    low, high = sorted((left, right))
    if high >= LOTS:
        return low >= (2 if high == MANY else 3)
    return low == high


def agreement(a: Claims, b: Claims) -> float:
    """The share of words that two sentences have in common, 0 to 1."""
    return len(a.meant & b.meant) / len(a.meant | b.meant) if a.meant | b.meant else 0.0


def says_again(new: Claims, old: Claims) -> bool:
    """Whether a sentence has little that another one has not: four of five of its words are there."""
    return 0 < 0.8 * len(new.meant) <= len(new.meant & old.meant)
