"""What the quickstart's report says, in both of its forms: the page (report.py), the picture (report_picture.py)."""

from ..evaluation.objects import Vocabulary
from . import scores

STAGES = {"stage1": "after stage 1", "stage2": "after stage 2"}
HEADLINE = ("objects_right", "failed")
STEP_NAMES = {
    "weights": "weights fetched and converted",
    "data": "sample set made",
    "stage1": "stage 1 trained",
    "stage2": "stage 2 trained",
    "answers": "questions answered",
}


def headline(results: dict) -> str:
    """One sentence with the first number of both stages; it says what happened, better or worse."""
    before, after = (results["scores"][stage]["objects_right"]["value"] for stage in STAGES)
    trend = "up from" if after > before else "down from" if after < before else "just as after stage 1:"
    return f"After stage 2 the model names {after:.0%} of the objects, {trend} {before:.0%}"


def subtitle(results: dict) -> str:
    before, after = (results["scores"][stage]["failed"]["value"] for stage in STAGES)
    return (
        f"{after:.0%} of its answers fail: they repeat, break off or are no text; after stage 1, {before:.0%} did. "
        f"{len(results['pictures'])} held-out pictures with {results['objects']} objects were shown, each with "
        f"“{results['question']}”"
    )


def shown_pictures(results: dict) -> list[dict]:
    """The pictures to show, in order."""
    by_id = {picture["image_id"]: picture for picture in results["pictures"]}
    return [by_id[i] for i in results["shown"]]


def vocabulary(results: dict) -> Vocabulary:
    """The objects that count as named, right or wrong."""
    return tuple((name, tuple(synonyms)) for name, synonyms in results["vocabulary"])


def truth(picture: dict) -> str:
    """What is in a picture: "a fox, an umbrella · beach"."""
    return ", ".join(thing["name"] for thing in picture["objects"]) + f" · {picture['scene']}"


def segments(answer: str, picture: dict, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """An answer cut into (text, "" | "right" | "wrong"), the latter for objects that it names. Joined: the answer."""
    parts, at = [], 0
    for mention in scores.mentions(answer, picture, vocabulary):
        parts.append((answer[at : mention.start], ""))
        parts.append((answer[mention.start : mention.end], "right" if mention.right else "wrong"))
        at = mention.end
    return [part for part in [*parts, (answer[at:], "")] if part[0]]


def duration(seconds: float) -> str:
    """75.3 -> "1 min 15 s" """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def about(results: dict) -> list[tuple[str, str]]:
    """(heading, text): what this shows and what it does not."""
    return [
        (
            "What this is",
            "MiniGPT-4’s own path, run with small frozen models: EfficientNet-Lite0 for the eye, a small Q-Former, "
            "SmolLM2-135M for the language. Only the projection between them was trained here, "
            f"{results['trained']:,} weights: stage 1 on short captions, stage 2 on detailed descriptions in the "
            "conversation template.",
        ),
        (
            "Held out by combination",
            "Every object and every scene below occurs in training, but never in the combination that is shown here: "
            "this object on this scene, or these two together. So a right name was read off the picture, not "
            "remembered with it. The pictures shown are the first of a random order that never changes, not the best.",
        ),
        (
            "What this is not",
            "A measure of MiniGPT-4 at full size. The pictures are composed of drawn objects on drawn scenes, not "
            "photographs, and a language model of 135 million weights says a lot that is not there. Words were "
            "compared, nobody judged the meaning: what is said about colours, sizes and places is not scored.",
        ),
    ]


RULES = (
    "Small figures: 95 % bootstrap intervals over the pictures. Shuffled: what the same answers get on pictures they "
    "were not given for, so what naming blindly would get. An answer fails when it is empty; leaks a special token or "
    "a role; is no text (broken bytes, many signs, or letters not Latin); repeats (four words in a row three times, or "
    "a sentence twice); or breaks off (fills its room, or does not end in . ! or ?). The first of these counts."
)
CREDIT = (
    "Objects drawn by OpenMoji (openmoji.org), licence CC BY-SA 4.0; the pictures composed of them are under the same."
)
