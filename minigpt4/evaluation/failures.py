"""What counts as a failed answer. The first reason that holds is the answer's:

empty       no letter and no digit in it
leak        a stop symbol, special token or role of the template is left in the text: `###`, `<|im_end|>`, `Human:` ...
non-text    under 70 % of its signs are letters, digits or blanks; or it has U+FFFD (broken bytes) or a word of 40 or
            more letters; or over 20 % of its letters are not Latin
repeats     four words in a row occur three times, or a sentence twice
breaks off  it ran into the token limit, or does not end in . ! or ? (verse: the limit alone; lines may end in a comma)
"""

import re
import unicodedata
from collections import Counter

LEAK = re.compile(
    r"<\|[^|>\s]*\|>|</?s>|<unk>|</?Img>|<ImageHere>|###|\b(?:human|assistant|user|system)\s*:|"
    r"^\s*(?:human|assistant|user|system)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
REASONS = ("empty", "leak", "non-text", "repeats", "breaks off")


def non_text(answer: str) -> bool:
    if "\ufffd" in answer or re.search(r"\w{40}", answer):
        return True
    plain = sum(c.isalnum() or c.isspace() for c in answer)
    letters = [c for c in answer if c.isalpha()]
    foreign = sum("LATIN" not in unicodedata.name(c, "") for c in letters)
    return plain < 0.7 * len(answer) or foreign > 0.2 * len(letters)


def repeats(answer: str) -> bool:
    """Whether four words in a row occur three times, or a sentence twice; case and punctuation do not count."""
    words = re.findall(r"\w+(?:'\w+)?", answer.lower())
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    sentences = Counter(" ".join(re.findall(r"\w+", s)) for s in re.split(r"[.!?\n]+", answer.lower()))
    sentences.pop("", None)
    return max(fours.values(), default=0) >= 3 or max(sentences.values(), default=0) >= 2


def failure(answer: str, hit_limit: bool, verse: bool = False) -> str:
    """The reason why an answer fails, one of REASONS; "" when it does not. `verse`: a poem was asked for."""
    if not any(c.isalnum() for c in answer):
        return "empty"
    if LEAK.search(answer):
        return "leak"
    if non_text(answer):
        return "non-text"
    if repeats(answer):
        return "repeats"
    ended = verse or re.search(r"[.!?][\"'”’)]?$", answer.strip())
    return "breaks off" if hit_limit or not ended else ""
