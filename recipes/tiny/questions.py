"""Questions with short answers, made from what several people wrote of a photo, in the manner of COCO-QA.

A question is asked only where the captions agree, or where all but those that are silent do. Seven kinds: animal, who,
colour, number, doing, where, and is there (yes and no, equally often for each thing). Source: Ren et al. 2015
(arXiv:1505.02074), which takes a parser for what a few patterns and word lists do here.
"""

import json
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from minigpt4.common.paths import write_whole
from recipes.english import article

WORDS = tomllib.loads(Path(__file__).with_name("word_lists.toml").read_text(encoding="utf-8"))
MANY, SAME, THINGS = WORDS["plurals"], WORDS["same"], WORDS["things"]
ONE = {plural: single for single, plural in MANY.items() if single != plural}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
LISTS = ("people", "animals", "colours", "coloured", "places", "not_done")
PEOPLE, ANIMALS, COLOURS, COLOURED, PLACES, NOT_DONE = (tuple(WORDS[name].split()) for name in LISTS)
SEVERAL = ("shorts", "pants", "jeans")  # "are", though they are one thing
OBJECT = r"(?: (?:a|an|the|his|her|their|some) (?:\w+ )?(?:bike|bicycle|ball|horse|guitar|skateboard|surfboard|" \
         r"frisbee|book|boat|wave|kite|motorcycle|stick|camera|toy|picture|pizza|cake|sandwich|food)| (?:soccer|" \
         r"football|basketball|baseball|tennis|hockey|rugby|volleyball|frisbee|music|golf))?"  # fmt: skip
ONE_IN = 45  # photos are asked whether a thing is there at most once in so many, with each answer


class Question(NamedTuple):
    """`answer` is trained on; each of `answers` counts as right."""

    kind: str
    question: str
    answer: str
    answers: tuple[str, ...]


def questions_of(captions: Sequence[str]) -> list[Question]:
    """All questions that the captions of one photo answer, but for those about what is there."""
    texts = [" ".join(re.findall(r"[a-z']+", caption.lower().replace("grey", "gray"))) for caption in captions]
    asked = [_animal(texts), _who(texts), *_colours(texts), *_numbers(texts), _doing(texts), _where(texts)]
    return [question for question in asked if question]


def _names(text: str, among: Iterable[str]) -> list[str]:
    """The things of `among` that a text names, in the singular and the commoner word, as often as it names them."""
    singles = [ONE.get(word, word) for word in text.split()]
    return [SAME.get(word, word) for word in singles if word in among]


def _subjects(texts: Sequence[str]) -> list[str]:
    """The people and animals that any text names."""
    return sorted({name for text in texts for name in _names(text, (*PEOPLE, *ANIMALS, "puppy"))})


def _are_several(texts: Sequence[str], name: str) -> bool:
    return any(re.search(rf"\b{MANY[name]}\b", text) for text in texts)


def _agreed(values: Sequence[str], least: int = 2) -> str | None:
    """The one value that all give, where so many do."""
    return values[0] if len(values) >= least and len(set(values)) == 1 else None


def _animal(texts: Sequence[str]) -> Question | None:
    told = [set(names) for text in texts if (names := _names(text, (*ANIMALS, "puppy")))]
    named = set().union(*told)
    if len(named) != 1 or len(told) < len(texts) / 2:
        return None
    return Question("animal", "What animal is in the picture?", *_told(named.pop()))


def _told(name: str) -> tuple[str, tuple[str, ...]]:
    """The answer that names it, and all that are right."""
    with_article = f"{article(name)} {name}"
    return with_article.capitalize() + ".", (name, with_article, MANY[name])


def _who(texts: Sequence[str]) -> Question | None:
    """Of photos with one person: all that name one, name the same."""
    named = [_names(text, PEOPLE) for text in texts]
    many = any(word in ONE or word in ("group", "crowd", "couple", "team") or word in NUMBERS for t in texts
               for word in t.split())  # fmt: skip
    who = _agreed([n[0] for n in named if n and n[0] != "person"])
    if many or not who or any(len(set(n)) > 1 for n in named):
        return None
    return Question("who", "Who is in the picture?", *_told(who))


def _colours(texts: Sequence[str]) -> list[Question]:
    colour = "|".join(COLOURS)
    found: dict[str, list[str]] = {}
    for text in texts:
        pattern = rf"\b({colour})(?: (?:and )?({colour}))? ({'|'.join(COLOURED)})\b"
        for first, second, thing in re.findall(pattern, text):
            both = " and ".join(sorted({first, second} - {""}))
            found.setdefault(thing, []).append(both)
    asked = []
    for thing, values in found.items():
        value = _agreed(values, 1 if len(texts) < 4 else 2)
        if value:
            verb = "are" if thing in SEVERAL else "is"
            asked.append(Question("colour", f"What color {verb} the {thing}?", value.capitalize() + ".", (value,)))
    return asked


def _numbers(texts: Sequence[str]) -> list[Question]:
    asked = []
    for single, plural in MANY.items():
        if SAME.get(single, single) != single or single in ("person", "child", "baby"):
            continue
        said, alone = [], 0
        for text in texts:
            words = re.findall(rf"\b({'|'.join(NUMBERS)}) (?:[a-z]+ ){{0,2}}?{plural}\b", text)
            said += words
            alone += bool(re.search(rf"\b(?:a|an) (?:[a-z]+ ){{0,2}}?{single}\b", text))
        none_else = not any(re.search(rf"\b({plural}|another|other|group)\b", text) for text in texts)
        number = _agreed(said) if said else "one" if single != plural and none_else and alone >= 3 else None
        if number and not (said and alone):
            digit = str(NUMBERS.get(number, 1))
            asked.append(
                Question("number", f"How many {plural} are there?", number.capitalize() + ".", (number, digit))
            )
    return asked


def _doing(texts: Sequence[str]) -> Question | None:
    """What the one that is there does, where two people say the same."""
    subjects, said = _subjects(texts), []
    for text in texts:
        match = re.search(
            rf"\b({'|'.join((*MANY, *ONE))})(?: in an? (?:\w+ )?\w+)?(?: is| are)? (\w+ing)({OBJECT})", text
        )
        if match and match[2] not in NOT_DONE:
            said.append((match[2], re.sub(r" (?:a|an|the|his|her|their|some) (?:\w+ )?(?=\w+$)", " a ", match[3])))
    if not said or len(subjects) > 2:
        return None
    verb, count = Counter(verb for verb, _ in said).most_common(1)[0]
    if count < 2:
        return None
    whole = Counter(verb + _same_thing(thing) for v, thing in said if v == verb).most_common(1)[0][0]
    who = subjects[0] if len(subjects) == 1 else next((s for s in subjects if s not in ("person", "child")), None)
    if who is None or _are_several(texts, who):
        who, be = "they", "are"
    else:
        who, be = f"the {who}", "is"
    answers = {v + end for v, thing in said for end in (thing, _same_thing(thing), "")}
    return Question("doing", f"What {be} {who} doing?", whole.capitalize() + ".", tuple(sorted(answers)))


def _same_thing(thing: str) -> str:
    return thing.replace("bicycle", "bike")


def _where(texts: Sequence[str]) -> Question | None:
    found = []
    for text in texts:
        match = re.search(rf"\b(in|on|at) (the|a|an) (?:\w+ )?({'|'.join(PLACES)})\b", text)
        if match:
            found.append(match.groups())
    if not found:
        return None
    place, count = Counter(place for *_, place in found).most_common(1)[0]
    if count < 2:
        return None
    words = Counter(f"{preposition} the {place}" for preposition, _, p in found if p == place).most_common(1)[0][0]
    answers = {f"{preposition} {the} {p}" for preposition, _, p in found for the in ("the", "a")} | {
        p for *_, p in found
    }
    subjects = _subjects(texts)
    question = "Where are they?" if subjects else "Where was this picture taken?"
    if len(subjects) == 1 and not _are_several(texts, subjects[0]):
        question = f"Where is the {subjects[0]}?"
    return Question("where", question, words.capitalize() + ".", tuple(sorted(answers)))


def is_there(photos: dict[str, Sequence[str]], seed: int = 0) -> dict[str, list[Question]]:
    """image -> questions whether things are there: for each thing as many yes as no, so that the thing tells nothing.

    Yes: two captions name it. No: none names it, nor what goes with it (THINGS).
    """
    words = {image: [set(_plain(c)) for c in captions] for image, captions in photos.items()}
    asked: dict[str, list[Question]] = {image: [] for image in photos}
    for thing, others in THINGS.items():
        rng = random.Random(f"{seed} {thing}")
        known = {thing, *others.split()}
        yes = [image for image, told in words.items() if sum(thing in one for one in told) >= min(2, len(told))]
        no = [image for image, told in words.items() if not any(known & one for one in told)]
        count = min(len(yes), len(no), len(photos) // ONE_IN)
        for answer, images in (("Yes", yes), ("No", no)):
            for image in rng.sample(images, count):
                what = "any" if thing in ("water", "snow", "grass") else article(thing)
                question = f"Is there {what} {thing} in the picture?"
                asked[image].append(Question("is there", question, f"{answer}.", (answer.lower(),)))
    return asked


def _plain(caption: str) -> list[str]:
    """The words of a caption, plurals as singulars too."""
    words = re.findall(r"[a-z]+", caption.lower())
    return [*words, *(ONE.get(w) or w.removesuffix("s") for w in words)]


def balanced(asked: dict[str, list[Question]], seed: int = 0) -> dict[str, list[Question]]:
    """Fewer questions: within each kind no answer comes more often than all others together, so that what is commonest
    (one man, a dog) is no safe guess."""
    for kind in ("animal", "who", "number"):
        found = [(image, q) for image, questions in asked.items() for q in questions if q.kind == kind]
        counts = Counter(q.answer for _, q in found)
        if not counts:
            continue
        answer, count = counts.most_common(1)[0]
        its = [(image, q) for image, q in found if q.answer == answer]
        for image, question in random.Random(f"{seed} {kind}").sample(its, max(0, 2 * count - len(found))):
            asked[image].remove(question)
    return asked


def make_questions(photos: Path, splits: Sequence[str], file: Path, seed: int = 0) -> Counter[str]:
    """Write the questions about the photos of a list, as `minigpt4 eval --suite vqa` reads them; count the kinds."""
    rows = [json.loads(line) for line in photos.read_text(encoding="utf-8").splitlines()]
    counts: Counter[str] = Counter()
    lines = []
    for split in splits:
        captions = {row["image"]: row["captions"] for row in rows if row["split"] == split}
        there = is_there(captions, seed)
        asked = {image: [*questions_of(captions[image]), *there[image]] for image in captions}
        for image, questions in balanced(asked, seed).items():
            for kind, question, answer, answers in questions:
                counts[kind] += 1
                line = {"image": image, "split": split, "type": kind, "question": question,
                        "answer_trained_on": answer, "answers": list(answers)}  # fmt: skip
                lines.append(json.dumps(line) + "\n")
    write_whole(file, "".join(lines))
    return counts
