"""Scores of the quickstart's descriptions: are the right things named, and is the text whole. Words are compared, no
model judges.

A picture is what the sample set says of it: `{"objects": [{"name", "synonyms", ...}], "scene", "scene_synonyms",
"caption"}`.
"""

from collections.abc import Iterable, Sequence

from ..evaluation import objects as things
from ..evaluation.failures import REASONS, failure
from ..evaluation.objects import Mention, Vocabulary
from ..evaluation.statistics import Measure, mean, share


def vocabulary_of(pictures: Iterable[dict]) -> Vocabulary:
    """Every object of these pictures once, with its synonyms, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for picture in pictures:
        for thing in picture["objects"]:
            found.setdefault(thing["name"], set()).update(thing.get("synonyms", ()))
    return tuple((name, tuple(sorted(found[name]))) for name in sorted(found))


def mentions(answer: str, picture: dict, vocabulary: Vocabulary) -> list[Mention]:
    """Where `answer` names objects of the vocabulary, from left to right; right when the picture has such an object.

    A word that is not an object here but stands in the picture's own caption (a sun that the scene shows) is no
    mention at all.
    """
    described = things.named(picture.get("caption", ""), vocabulary)
    found = things.find(answer, vocabulary, (thing["name"] for thing in picture["objects"]))
    return [mention for mention in found if mention.right or not mention.names & described]


def objects_right(answer: str, picture: dict, vocabulary: Vocabulary) -> set[str]:
    """The picture's objects whose name or synonym occurs in the answer."""
    return things.named(answer, vocabulary) & {thing["name"] for thing in picture["objects"]}


def objects_wrong(answer: str, picture: dict, vocabulary: Vocabulary) -> set[str]:
    """Objects of the vocabulary that the answer names though the picture has none: each once, in the answer's words."""
    found: dict[frozenset[str], str] = {}
    for mention in mentions(answer, picture, vocabulary):
        if not mention.right:
            found.setdefault(mention.names, answer[mention.start : mention.end].lower())
    return set(found.values())


def scene_right(answer: str, picture: dict) -> bool:
    """Whether the scene's name or one of its synonyms occurs in the answer as a whole word."""
    return bool(things.find(answer, ((picture["scene"], tuple(picture.get("scene_synonyms", ()))),)))


def judge(answer: str, hit_limit: bool, picture: dict, vocabulary: Vocabulary) -> dict:
    """Everything said of one answer, as plain values for results.json."""
    wrong, right = objects_wrong(answer, picture, vocabulary), objects_right(answer, picture, vocabulary)
    return {
        "answer": answer, "right": sorted(right), "wrong": sorted(wrong), "scene_right": scene_right(answer, picture),
        "hit_limit": hit_limit, "failure": failure(answer, hit_limit),
    }  # fmt: skip


def measures(pictures: Sequence[dict], judged: Sequence[dict]) -> list[Measure]:
    """What the judged answers come to: a share of all objects, wrong objects an answer, shares of answers."""
    right = [(len(row["right"]), len(picture["objects"])) for row, picture in zip(judged, pictures, strict=True)]
    wrong, scenes = [len(row["wrong"]) for row in judged], [row["scene_right"] for row in judged]
    reasons, less = [row["failure"] for row in judged], {"form": "{:.0%}", "better": "less"}
    return [
        share("objects_right", "objects named right", right, form="{:.0%}"),
        mean("objects_wrong", "wrong objects named, an answer", wrong, form="{:.2f}", better="less"),
        mean("scene_right", "scene named right", scenes, form="{:.0%}"),
        mean("failed", "answers that fail", [bool(reason) for reason in reasons], **less),
        *(mean(name, f"… {name}", [reason == name for reason in reasons], **less) for name in REASONS),
    ]


def objects_right_swapped(pictures: Sequence[dict], answers: Sequence[str], vocabulary: Vocabulary) -> float | None:
    """`objects_right` when every answer is held against all the *other* pictures: what naming blindly would get."""
    pairs = [(p, a) for i, p in enumerate(pictures) for j, a in enumerate(answers) if i != j]
    total = sum(len(p["objects"]) for p, _ in pairs)
    return sum(len(objects_right(a, p, vocabulary)) for p, a in pairs) / total if total else None
