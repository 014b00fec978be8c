"""Sentences as texts: where they end, how they are tidied, made whole, and joined to one description."""

from __future__ import annotations

import re
from itertools import product

from ..common.english import article
from ..evaluation.objects import Mention, ancestors, finest, label_of
from .claims import ANIMALS, GROUPS, SINGULAR_S, count_of, read_claims, things_in
from .words import (
    ADJECTIVES,
    COLOURS,
    COMPOUND,
    DETERMINERS,
    NUMBERS,
    ONE,
    PEOPLE,
    PLURALS,
    PREPOSITIONS,
    THINGS_IN_S,
    VERBS,
    stem,
)

END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
# A sentence does not end in one of these.
DANGLING = PREPOSITIONS - {"off", "up", "down", "out", "outside", "inside", "around", "along", "behind", "by", "on"}
DANGLING |= {"a", "an", "the", "and", "or", "his", "her", "their", "its", "is", "are", "while", "that", "which", "two"}
# Adjectives that also name somebody or something: "A boy eats an orange."
_NOUNS_TOO = frozenset(["orange", "blond", "blonde", "brunette", "male", "female", "adult", "asian"])
_BE = frozenset(("is", "are", "was", "were", "has", "have"))
_PAST = frozenset(("ran", "sat", "stood", "held", "rode", "took", "wore", "swam"))
_NO_VERBS = re.compile(
    r"(?:some|any|no|every)thing|evening|morning|clothing|building|ring|string|railing|ceiling|spring|king|wing|sibling"
    r"|awning|piercing|painting|earring|wedding"
)
# An -ing word that is no part of a name: "a hiking trail".
_NAMED = "trail|wall|pool|lot|mall|cart|board|rink|suit|trunks|gear|bag|path|area|boat|room|pole|rod|net"
_ING = re.compile(rf"[a-z]+ing\b(?! (?:{_NAMED})s?\b)")
# What may follow "The girl is".
_AFTER_IS = r" (?:in|on|at|near|by|behind|under|inside|outside|next to|\w+ing|dressed)\b"
# Here a phrase begins that may be left out.
_PHRASES = (PREPOSITIONS - {"of", "to", "than", "like", "up", "down", "out", "off"}) | {
    "wearing",
    "holding",
    "while",
    "and",
}
# A caption about the picture itself, not about what is in it.
_PICTURE = "picture|photo|photograph|image|view|shot|close-?up|painting|drawing"
_META = re.compile(rf"(?:(?:an?|the)\s+)?(?:[\w-]+\s+){{0,2}}(?:{_PICTURE})s? of\b", re.IGNORECASE)


def split(text: str) -> list[str]:
    """The sentences of a text, each with its end mark where it has one."""
    return [part for raw in END.split(text.replace("\u00a0", " ")) if (part := " ".join(raw.split()))]


def ended(sentence: str) -> bool:
    return re.search(r"[.!?][\"'”’)]*$", sentence) is not None


def dangling(sentence: str) -> bool:
    """It stops in the middle: "A man in a", "A man in a blue and white"."""
    words = re.findall(r"[a-z']+", sentence.lower())
    if sentence.rstrip(".!? ").endswith((",", ";", ":")) or (words and words[-1] in DANGLING):
        return True
    if not words or words[-1] not in ADJECTIVES - _NOUNS_TOO:
        return False
    while words and words[-1] in ADJECTIVES | {"and"}:
        words.pop()
    return words[-1:] in (["a"], ["an"])


def tidy(sentence: str) -> str:
    """One blank between words, none before a comma, a capital first, one full stop last."""
    text = " ".join(sentence.replace('""', '"').replace("`", "'").split())
    text = re.sub(r'" *([^"]*?) *"', r"“\1”", text).replace('"', "")
    text = re.sub(r" (?=[.,;:!?)]|'(?:s|t|re|ll|ve|d|m)\b|n't\b)", "", text)
    text = re.sub(r"(?<=\w) - (?=\w)", " – ", text)
    text = re.sub(r"[\s.!?,;:-]+$", "", text)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def label_sentence(caption: str) -> str:
    """ "a photo of a Irish terrier" -> "This is a photo of an Irish terrier." """
    label = label_of(caption)
    at = caption.lower().rfind(label)
    label = caption[at : at + len(label)] if at >= 0 else label  # with its capitals
    if label in {"binoculars", "scissors", "sunglasses", "parallel bars", "swimming trunks"}:
        return f"This is a photo of {label}."
    return f"This is a photo of {article(label)} {label}."


def shortened(sentence: str) -> list[str]:
    """The sentence without some of its phrases ("in a blue shirt", "wearing a hat"), the longest first.

    Each has a verb, and more than that ("A man is riding." says too little). Its beginning stays, and what starts with
    is or are.
    """
    words = tidy(sentence)[:-1].split()
    parts: list[list[str]] = [[]]
    for before, word in zip(["", *words], words, strict=False):
        opens = word in _PHRASES and before not in _PHRASES
        if opens or word in {"is", "are"}:
            parts.append([])
        parts[-1].append(word)
    free = [i for i, part in enumerate(parts) if i and part[0] not in {"is", "are"}][:6]
    found = []
    for chosen in product((True, False), repeat=len(free)):
        gone = {i for i, stays in zip(free, chosen, strict=True) if not stays}
        if any(i - 1 in gone and i not in gone and parts[i][0] == "and" for i in free):
            continue  # "a girl in blue shorts and a shirt" is no "girl and a shirt"
        text = tidy(" ".join(word for i, part in enumerate(parts) if i not in gone for word in part))
        last = text[:-1].split()[-1].lower()
        broken = dangling(text) or last.endswith("ing") or _third_person(last)
        if gone and has_verb(text) and not broken:
            found.append(text)
    return sorted(found, key=len, reverse=True)


# -- from captions to whole sentences ---------------------------------------------------------------------------------


def has_verb(sentence: str, plural: bool = False) -> bool:
    """Whether a finite verb stands in it, as far as can be told: is, "plays" after a noun, "play" after a plural.

    Args:
        plural: the subject is known to be more than one.
    """
    clause = re.split(r"\b(?:while|whilst|as)\b", sentence.lower())[0]  # what follows has a verb of its own
    tokens = re.findall(r"[a-z']+|,", clause)
    for i, word in enumerate(tokens[1:], start=1):
        before, after = tokens[i - 1], tokens[i + 1] if i + 1 < len(tokens) else ""
        if word in _BE or word in _PAST or word.endswith("'re"):
            return True
        if before in COLOURS and after in DETERMINERS | PREPOSITIONS and _third_person(word):
            return True
        if before == "her" and tokens[i - 2] in PREPOSITIONS and after in PREPOSITIONS and _third_person(word):
            return True
        if before in PREPOSITIONS | DETERMINERS | ADJECTIVES or before in NUMBERS:
            continue
        moves = before in PEOPLE | ANIMALS or after in {"down", "up", "over", "through", "across", "along", "off"}
        if _third_person(word) and (word not in THINGS_IN_S or moves):
            return True
        several = before in PLURALS | {"that", "who"} or (before.endswith("s") and not before.endswith(SINGULAR_S))
        goes_on = plural and (before in PEOPLE | ANIMALS or after in PREPOSITIONS | DETERMINERS | {","})
        if word in VERBS and (several or before in GROUPS or goes_on):
            return True
    return False


def _third_person(word: str) -> bool:
    """plays, crosses, carries"""
    bases = {word[:-1], word[:-2], word[:-3] + "y" if word.endswith("ies") else ""}
    return word.endswith("s") and not word.endswith("ss") and not bases.isdisjoint(VERBS)


def whole(sentence: str) -> str | None:
    """A tidy caption as a whole sentence; None where no rule is sure of it.

    "A girl riding a horse." -> "A girl is riding a horse."; "Dog in the snow." -> "There is a dog in the snow."
    """
    text = _with_article(sentence)
    if text is None or _META.match(text):
        return None
    subject = _subject(text)
    first = text.split()[0].lower()
    plural = subject is not None and first not in ONE and _plural(text, subject.start, subject.end)
    end = _subject_end(text, subject.end) if subject else 0
    joined = subject is not None and end > subject.end
    if has_verb(text, plural or joined):
        return text
    if subject is None or text[end:].startswith(",") or _doubtful(text[end:]) or len(text[: subject.start].split()) > 5:
        return None
    rest = text[end:]
    grouped = re.match(r"An? (?:group|couple|pair|bunch|crowd|number|family) of", text) is not None
    verbs = [m for m in _ING.finditer(rest) if not _NO_VERBS.fullmatch(m.group())]
    worn = re.sub(rf" (?:{'|'.join(COLOURS)}) $", " clothes ", rest[: verbs[1].start()]) if len(verbs) > 1 else ""
    if worn and verbs[0].group() == "wearing" and _is_verb(verbs[1].group(), worn):
        verbs = verbs[1:]  # "A man wearing a hat is riding ..."
    between = rest[: verbs[0].start()] if verbs else ""
    crossed = re.search(r"[,;]|\b(?:while|as)\b", between) or any(
        name in PEOPLE | ANIMALS for m in things_in(between) for name in m.names if not joined
    )
    if verbs and not crossed and _is_verb(verbs[0].group(), between):
        start, last = len(between), between.split()[-1:]
        if last and last[0] in COMPOUND:
            start = between.rindex(last[0])
        return f"{text[:end]}{rest[:start]}{'are' if plural or grouped or joined else 'is'} {rest[start:]}"
    if first in {"the", "this", "these", "that"}:
        return None
    return f"There {'are' if plural else 'is'} {text[0].lower()}{text[1:]}"


def _subject(text: str) -> Mention | None:
    """The first thing that is named; somebody whose name begins with another thing is one ("mountain climber")."""
    first, second = (*things_in(text)[:2], None, None)[:2]
    joined = second and second.names & PEOPLE and text[first.end : second.start].isspace()
    return second if joined else first


def _subject_end(text: str, end: int) -> int:
    """Where the subject ends: "a man | and a woman" goes on behind the woman."""
    if re.match(r"\s+and\b", text[end:]):
        second = _subject(text[end:])
        if second and len(text[end : end + second.start].split()) <= 6:
            return end + second.end
    return end


def _is_verb(word: str, before: str) -> bool:
    last = before.lower().split()[-1:]
    known = any(stem(word) == stem(verb) for verb in VERBS)
    return known and not (last and last[0] in PREPOSITIONS | DETERMINERS | ADJECTIVES | {"and"})


def _doubtful(rest: str) -> bool:
    """After the subject stands what may be a verb that no list has: "contemplates his pitch", "traverse a plain"."""
    tokens = re.findall(r"[a-z']+|,", rest.lower())
    fine = PREPOSITIONS | DETERMINERS | ADJECTIVES | {"and", "each"}
    follow = PREPOSITIONS | COMPOUND | {",", "and", "who", "that", "next", "made", "seen", "set", "held", "covered"}
    if tokens and tokens[0] not in follow and not tokens[0].endswith(("ing", "ed")):
        return True
    return any(
        word.endswith("s") and not word.endswith(SINGULAR_S) and "'" not in word and word not in PREPOSITIONS
        and before not in fine and (after in DETERMINERS or after == "to")
        for before, word, after in zip(tokens, tokens[1:], tokens[2:], strict=False)
    )  # fmt: skip


def _plural(text: str, start: int, end: int) -> bool:
    head, word = text[:start].lower().split(), text[start:end].lower().split()[-1]
    counted = any(w in NUMBERS or w in {"several", "many", "some"} for w in head)
    return counted or word in PLURALS or (word.endswith("s") and not word.endswith(SINGULAR_S))


def _with_article(sentence: str) -> str | None:
    """ "Young boy climbs." -> "A young boy climbs."; None where a sentence begins with no thing and no known word."""
    first = re.match(r"[\w'’-]+", sentence)
    if first is None:
        return None
    word = first.group().lower()
    if word in DETERMINERS | {"there", "someone", "somebody", "he", "she", "it", "they"} or word in NUMBERS:
        return sentence
    subject = _subject(sentence)
    if subject is None:
        return None
    before = re.findall(r"[\w'’-]+", sentence[: subject.start].lower())
    if any(w not in ADJECTIVES | {"and", "haired", "blond-haired"} for w in before):
        return None
    if _plural(sentence, subject.start, subject.end):
        return sentence
    text = sentence[0].lower() + sentence[1:]
    return f"{article(text).capitalize()} {text}"


# -- several sentences as one text ------------------------------------------------------------------------------------


def introduce(sentence: str) -> str:
    """The first sentence: "The boy ..." -> "A boy ...", "The two dogs" -> "Two dogs"."""
    subject = _subject(sentence)
    if not sentence.startswith("The ") or subject is None or sentence[subject.end :].startswith((" of", " and")):
        return sentence
    rest, between = sentence[4:], sentence[4 : subject.start].split()
    if not _leads(" ".join(between[1:] if between[:1] and between[0] in NUMBERS else between)):
        return sentence
    if _plural(sentence, subject.start, subject.end):
        return rest[0].upper() + rest[1:]
    return f"{article(rest).capitalize()} {rest}"


def refer_back(sentence: str, earlier: list[str]) -> str | None:
    """ "A girl ..." -> "The girl ..." where a sentence before has one girl, child or person; "Two dogs" -> "The two
    dogs" where one has two; "There is a girl in ..." -> "The girl is in ...". None where that does not work: a
    second "There is a girl" would be another girl."""
    match = re.match(r"(?:There (is|are) )?(an?|one|two|three|four|five|six) ", sentence, re.IGNORECASE)
    subject = _subject(sentence)
    if match is None or subject is None or not _leads(sentence[match.end() : subject.start]):
        return sentence
    rest = sentence[subject.end :]
    if rest.lstrip().startswith(("and ", ",")):
        return sentence
    (name, *_) = sorted(finest(subject.names))
    number = match[2].lower()
    wanted = float(NUMBERS.get(number, GROUPS.get(sentence[subject.start : subject.end].lower(), 1)))
    if not _has(sentence, name, wanted) or not any(_has(text, name, wanted) for text in earlier):
        return sentence
    if match[1] and not re.match(_AFTER_IS, rest):
        return None
    counted, verb = f"{number} " if number in NUMBERS else "", f" {match[1]}" if match[1] else ""
    return f"The {counted}{sentence[match.end() : subject.end]}{verb}{rest}"


def _has(text: str, name: str, wanted: float) -> bool:
    """So many of this thing, of a kind of it, or of what it is a kind of, are in a text."""
    claims = read_claims(text)
    return any(wanted in (count_of(claims, kind), claims.counts.get(kind)) for kind in (name, *ancestors(name)))


def _leads(between: str) -> bool:
    """What stands between the article and the thing can only say of what kind it is: "soaked", "scruffy looking"."""
    found = re.findall(r"[\w'’]+|,", between.lower())
    return len(found) <= 4 and not any(w in PREPOSITIONS | DETERMINERS or w in NUMBERS or w == "," for w in found)
