"""What stays of a model's answer about a photo, and what people's captions add: pure functions on texts.

Nothing is invented: a sentence stays only if each of its words is backed by what people wrote about the same photo.
docs/curation.md says the rules in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..evaluation.failures import LEAK, non_text, repeats
from .claims import BEINGS, Claims, agreement, conflict, count_of, counts_fit, read_claims, says_again
from .sentences import dangling, ended, introduce, label_sentence, refer_back, shortened, split, tidy, whole
from .words import concept, follows

MOST = 3  # sentences in a description that captions were added to
NEW_WORDS = 2  # an added caption says so many things that were not said
NEW_SHARE = 0.5  # and so much of it is new
NEAR = 3  # content words between two that a caption says together
WORDS = 2  # content words that a description has at least

# Why a sentence of the model goes; the first that holds is its reason.
_FORM = ("meaningless", "apology", "repeats", "unfinished")
DROPS = (*_FORM, "unsupported", "cut down", "contradicted", "said by a caption", "photo dropped")
# Why a photo goes.
LOSSES = ("no human text", "captions disagree", "nothing left", "picture cannot be read")

LABEL = re.compile(r"a photo of ", re.IGNORECASE)
# The paper's rules drop "I'm sorry I made a mistake" and "I apologize for that".
APOLOGY = re.compile(
    r"\b(?:sorry|apolog\w+|made a mistake|as an ai|language model|i (?:can't|cannot|am unable))\b", re.IGNORECASE
)
# People guess here, speak of themselves, ask, or slip.
UNSURE = re.compile(
    r"\?|\b(?:is|are) (?:is|are|has|have)\b|\b(\w+) \1\b"
    r"|\b(?:maybe|perhaps|possibly|probably|unknown|I|my|we|our|us|can't|cannot)\b"
)


@dataclass
class Repair:
    """What became of one answer.

    Args:
        sentences: see `judge`.
        added: sentences of people, as they stand in the text.
        text: the description; "" if the photo is dropped.
        lost: why, one of LOSSES.
    """

    sentences: list[tuple[str, str]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    text: str = ""
    lost: str = ""


def judge(
    answer: str, hit_limit: bool = False, against: Callable[[Claims], str] = lambda sentence: ""
) -> list[tuple[str, str]]:
    """The sentences of an answer, each with the reason why it goes, "" if it stays; behind one that is cut down stands
    what is left of it.

    Args:
        hit_limit: the answer filled all its tokens, so that a last sentence without an end mark is unfinished.
        against: what captions have against a sentence whose form is right, a reason or "".
    """
    judged: list[tuple[str, str]] = []
    kept: list[Claims] = []
    seen: set[frozenset[str]] = set()
    parts = split(answer)
    for i, part in enumerate(parts):
        claims, why = read_claims(part), ""
        if LEAK.search(part) or non_text(part):
            why = "meaningless"
        elif APOLOGY.search(part):
            why = "apology"
        elif repeats(part) or (claims.meant and claims.meant in seen) or any(says_again(claims, k) for k in kept):
            why = "repeats"
        elif dangling(part) or (hit_limit and i == len(parts) - 1 and not ended(part)):
            why = "unfinished"
        elif not claims.content:
            why = "meaningless"
        else:
            why = against(claims)
        if why == "unsupported" and (less := _backed_part(part, against, kept)):
            judged.append((part, "cut down"))
            part, claims, why = less, read_claims(less), ""
        if not why:
            kept.append(claims)
        seen.add(claims.meant)
        judged.append((part, why))
    return judged


def _backed_part(part: str, against: Callable[[Claims], str], kept: Sequence[Claims]) -> str:
    """The longest of what a sentence is without some of its phrases that is backed and new; "" if none is."""
    for text in shortened(part):
        claims = read_claims(text)
        if len(claims.content) >= WORDS and not against(claims) and not any(says_again(claims, k) for k in kept):
            return text
    return ""


def supported(sentence: Claims, captions: Sequence[Claims]) -> bool:
    """Whether captions back all that a sentence says.

    Each word is in a caption, or follows from one there (a poodle is a dog; a dog is not a poodle). Words that stand
    next to each other stand near in this order in one caption, nobody else between: "a man in red and a boy in blue"
    does not back a man in blue. A colour stands before the same thing there, and a number is a caption's number of it.
    """
    backed = frozenset().union(*(c.said for c in captions)) if captions else frozenset()
    named = frozenset().union(*(c.implied for c in captions)) if captions else frozenset()
    if not sentence.content or not sentence.meant <= backed or not sentence.things <= named:
        return False
    if not all(any(_says_together(c, a, b) for c in captions) for a, b in pairwise(map(concept, sentence.content))):
        return False
    for name, colours in sentence.colours.items():
        if not any(colours <= c.colours.get(name, frozenset()) for c in captions):
            return False
    for name, n in sentence.counts.items():
        if not any((m := count_of(c, name)) and counts_fit(n, m) for c in captions):
            return False
    return True


def _says_together(caption: Claims, first: str, second: str) -> bool:
    """The caption has both concepts in this order, at most NEAR content words and nobody else between them."""
    ago = NEAR + 1  # content words since `first`
    for word in caption.content:
        meant = follows(word)
        if ago <= NEAR and second in meant:
            return True
        ago = 0 if first in meant else NEAR + 1 if meant & BEINGS else ago + 1
    return False


def repair(answer: str, captions: Sequence[str], hit_limit: bool = False, checked: bool = True) -> Repair:
    """An answer about a photo, made right by what people wrote about it.

    Args:
        captions: one or more sentences by people, or a single label caption ("a photo of a beaver").
        hit_limit: see `judge`.
        checked: False: the rules of form alone, as in the paper, where people look at each photo afterwards.
    """
    if not checked:
        return _finish(judge(answer, hit_limit), [])
    if len(captions) == 1 and LABEL.match(captions[0].strip()):
        label = read_claims(captions[0])
        judged = judge(answer, hit_limit, lambda sentence: _against(sentence, [label]))
        return _finish(_without(judged, [label]), [label_sentence(captions[0].strip())] if label.content else [])
    texts = [text for c in captions if (text := tidy(c)) and not non_text(text) and not LEAK.search(text)]
    texts = [text for text in texts if read_claims(text).content]
    backed = agreed(texts)
    if not backed:
        judged = judge(answer, hit_limit, lambda sentence: "photo dropped")
        return Repair(judged, lost="captions disagree" if texts else "no human text")
    claims = [read_claims(text) for text in backed]
    judged = judge(answer, hit_limit, lambda sentence: _against(sentence, claims))
    used, added = _add([tidy(part) for part, why in judged if not why], backed)
    return _finish(_without(judged, [read_claims(text) for text in used]), added)


def _without(judged: list[tuple[str, str]], said: Sequence[Claims]) -> list[tuple[str, str]]:
    """What stays of the answer when captions that say the same, and perhaps more, are in the text."""
    return [
        (part, "said by a caption" if not why and any(read_claims(part).meant <= c.said for c in said) else why)
        for part, why in judged
    ]


def agreed(texts: Sequence[str]) -> list[str]:
    """The captions that half of the others or more do not contradict; none where people saw different things."""
    claims = [read_claims(text) for text in texts]
    found: list[str] = []
    for i, text in enumerate(texts):
        others = [c for j, c in enumerate(claims) if j != i]
        if 2 * sum(conflict(claims[i], c, claims, colours=False) for c in others) <= len(others):
            found.append(text)
    shared = any(agreement(a, b) for i, a in enumerate(claims) for b in claims[:i])
    return found if len(texts) == 1 or (len(found) > 1 and shared) else []


def _against(sentence: Claims, captions: Sequence[Claims]) -> str:
    if not supported(sentence, captions):
        return "unsupported"
    conflicts = sum(conflict(sentence, c, captions, colours=False) for c in captions)
    return "contradicted" if 2 * conflicts >= len(captions) else ""


def _add(kept: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Captions that say more than `kept`: first the one that people agree on most, then those that bring the most new
    words; none that contradicts what is said already.

    Returns:
        the captions as people wrote them, and as sentences of the text.
    """
    claims = {text: read_claims(text) for text in texts}
    share = {text: sum(agreement(claims[text], c) for c in claims.values()) for text in claims}
    sentences = {text: whole(text) for text in claims if not UNSURE.search(text)}
    if not any(sentences.values()):
        sentences = {text: text for text in sentences}
    said = [read_claims(text) for text in kept]
    used: list[str] = []
    added: list[str] = []
    while True:
        told = frozenset().union(*(c.said for c in said)) if said else frozenset()
        left: dict[str, tuple[int, str]] = {}
        for text, sentence in sentences.items():
            sentence = sentence and refer_back(sentence, [*kept, *added])
            new = len(claims[text].meant - told)
            enough = new >= NEW_WORDS and new >= NEW_SHARE * len(claims[text].meant)
            if sentence and enough and not any(conflict(claims[text], c, list(claims.values())) for c in said):
                left[text] = new, sentence
        alone = [text for text in kept if not any(read_claims(text).meant <= claims[u].said for u in used)]
        if not left or len(alone) + len(added) >= MOST:
            return used, added
        best = max(left, key=lambda text: (left[text][0], share[text]) if added else (share[text], left[text][0]))
        said.append(claims[best])
        used.append(best)
        added.append(left[best][1])


def _finish(judged: list[tuple[str, str]], added: list[str]) -> Repair:
    """The text: what stays of the answer, then what was added."""
    kept = [tidy(part) for part, why in judged if not why]
    first = kept or added
    first[:1] = [introduce(sentence) for sentence in first[:1]]
    text = " ".join([*kept, *added])
    if len(read_claims(text).content) < (1 if added else WORDS):
        return Repair([(part, why or "photo dropped") for part, why in judged], lost="nothing left")
    return Repair(judged, added, text)
