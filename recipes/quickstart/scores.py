"""The question about the held-out pictures after the warm start and each stage, and its scores.

Answers, failures and intervals are those of `minigpt4 eval`; the objects and scenes are the sample set's own.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.config import load_config
from minigpt4.common.errors import DataError
from minigpt4.conversation.prompts import DEFAULT_QUESTION
from minigpt4.evaluation import objects
from minigpt4.evaluation.answering import Item, answer_all, chat_for, made_from
from minigpt4.evaluation.data import Record, limited
from minigpt4.evaluation.objects import Mention, Vocabulary
from minigpt4.evaluation.page import results_of
from minigpt4.evaluation.scoring import Scored, Tools, score_failure, verdict_of
from minigpt4.evaluation.statistics import mean, share

STAGES = {"warm_start": "after the warm start", "stage1": "after stage 1", "stage2": "after stage 2"}


def read_heldout(data: Path) -> list[Record]:
    """The held-out pictures of a sample set; `truth` is what its annotations.json says of each. Raises DataError."""
    file = data / "heldout" / "annotations.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        records = [Record(picture["image_id"], file.parent / picture["image"], picture) for picture in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete {data} to have it made again") from None
    if not records:
        raise DataError(f"{file}: lists no picture; delete {data} to have it made again")
    return records


def evaluate(
    cfg_path: str, options: list[str], checkpoints: dict[str, Path], heldout: list[Record], limit: int | None,
    folder: Path, max_new_tokens: int, batch: int,
) -> dict:  # fmt: skip
    """Ask about the pictures with the projection of each stage, and score the answers.

    Args:
        cfg_path, options: a chat config; each of `checkpoints` takes the place of its model.ckpt.
        limit: ask about so many of the pictures (None: all).
        folder: keeps the answers. A later call asks only what is not there yet.
        batch: pictures that are answered at once.
    Returns:
        results as `minigpt4 eval` writes them; the scores have the keys of STAGES.
    """
    items = [Item(record, DEFAULT_QUESTION) for record in limited(heldout, limit)]
    vocabulary, scored = vocabulary_of(heldout), {}
    for stage, checkpoint in checkpoints.items():
        config = load_config(cfg_path, [*options, f"model.ckpt={checkpoint}"], mode="chat")
        decoding = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens,
                    "repetition_penalty": config.model.repetition_penalty}  # fmt: skip
        source, say = made_from(config, decoding), f"{STAGES[stage]}: "
        answers = answer_all(lambda c=config: chat_for(c, "auto"), items, source, folder, batch, say)
        scored[stage] = score(items, answers, vocabulary)
    found = results_of(items, scored)
    for item, row in zip(items, found["items"], strict=True):  # of the last stage
        row["objects"] = [thing["name"] for thing in item.record.truth["objects"]]
        row["named"] = sorted(objects.named(row[stage]["answer"], vocabulary) & set(row["objects"]))
    return {
        "config": cfg_path, "options": options, "stages": STAGES,
        "checkpoints": {stage: str(file) for stage, file in checkpoints.items()},
        "data": [str(heldout[0].image.parents[1])], "split": None, "limit": limit, "decoding": decoding, "batch": batch,
        "questions": {"": DEFAULT_QUESTION}, "objects": sum(len(item.record.truth["objects"]) for item in items),
        **found,
    }  # fmt: skip


def confusions(results: dict, count: int) -> list[tuple[str, int, int, list[str]]]:
    """(object, times shown, times named right, other objects named in its pictures) after stage 2, the worst first."""
    shown, right, others = Counter(), Counter(), defaultdict(Counter)
    for item in results["items"]:
        marks = item["stage2"]["marks"]
        wrong = {item["stage2"]["answer"][start:end].lower() for start, end, kind in marks if kind == "wrong"}
        for name in item["objects"]:
            shown[name] += 1
            right[name] += name in item["named"]
            others[name].update(wrong if name not in item["named"] else ())
    worst = sorted((name for name in shown if right[name] < shown[name]), key=lambda n: (right[n] - shown[n], n))
    return [(n, shown[n], right[n], [word for word, _ in others[n].most_common(3)]) for n in worst[:count]]


def vocabulary_of(pictures: Sequence[Record]) -> Vocabulary:
    """Every object of these pictures once, with its synonyms, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for picture in pictures:
        for thing in picture.truth["objects"]:
            found.setdefault(thing["name"], set()).update(thing.get("synonyms", ()))
    return tuple((name, tuple(sorted(found[name]))) for name in sorted(found))


def mentions(answer: str, truth: dict, vocabulary: Vocabulary) -> list[Mention]:
    """Where the answer names objects of the vocabulary, from left to right; right when the picture has such an object.

    A word that is no object here but stands in the picture's own caption (a sun in the sky) does not count.
    """
    described = objects.named(truth.get("caption", ""), vocabulary)
    found = objects.find(answer, vocabulary, (thing["name"] for thing in truth["objects"]))
    return [mention for mention in found if mention.right or not mention.names & described]


def score(items: Sequence[Item], answers: Sequence[dict], vocabulary: Vocabulary) -> Scored:
    """Objects named right and wrong, scenes named right, and what `minigpt4 eval --suite failure` counts."""
    scored, right, wrong, scenes, wanted = score_failure(items, answers, Tools()), [], [], [], []
    for i, (item, verdict) in enumerate(zip(items, scored.verdicts, strict=True)):
        truth, text = item.record.truth, verdict["answer"]
        names = [thing["name"] for thing in truth["objects"]]
        marks = mentions(text, truth, vocabulary)
        right.append((len(objects.named(text, vocabulary) & set(names)), len(names)))
        wrong.append(len({mention.names for mention in marks if not mention.right}))
        scenes.append(bool(objects.find(text, ((truth["scene"], tuple(truth.get("scene_synonyms", ()))),))))
        wanted.append(names)
        scored.verdicts[i] = verdict_of(f"{', '.join(names)} · {truth['scene']}", text, marks, verdict["flags"])
    scored.measures[:0] = [
        share("objects_right", "objects named right", right),
        mean("objects_wrong", "wrong objects named, an answer", wrong, form="{:.2f}", better="less"),
        mean("scene_right", "scene named right", scenes),
    ]
    blind = objects.swapped_share([answer["answer"] for answer in answers], wanted, vocabulary, of="things")
    if blind is not None:
        scored.notes.append(f"With the answers shuffled among the pictures, {blind:.1%} of the objects are named.")
    scored.facts["objects_right_shuffled"] = blind
    return scored
