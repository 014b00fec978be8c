"""A name's indefinite article."""

import re

# Names that begin with a vowel letter and no vowel, and the other way round.
_A = re.compile(r"(?:uni(?!m|n)|use|usu|eu|ewe|one\b|once\b|ut[ei]|u\b)", re.IGNORECASE)
_AN = re.compile(r"(?:hour|honest|heir|hono)", re.IGNORECASE)


def article(name: str) -> str:
    """a or an, by how the name begins: an emu, a euphonium, an hourglass."""
    vowel = name[:1].lower() in "aeiou" and not _A.match(name)
    return "an" if vowel or _AN.match(name) else "a"
