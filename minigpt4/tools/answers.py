"""The quickstart's question: the same one about every held-out picture, with the projection of either stage.

`STAGES` name the two trained projections; an answer is (text, whether it ran into the token limit).
"""

import json
import random
import time
from pathlib import Path

from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import DataError
from ..common.paths import sha256
from ..conversation.prompts import DEFAULT_QUESTION
from ..evaluation.objects import Vocabulary
from ..evaluation.statistics import compared
from . import scores

STAGES = ("stage1", "stage2")
SHOWN = 8  # pictures in the report: the first of a random order, not the best
SEED = 8  # of that order
Answers = dict[str, list[tuple[str, bool]]]


def read_heldout(data: Path) -> list[dict]:
    """The held-out pictures of a sample set, in a random order that never changes.

    Raises:
        DataError: the file is missing or holds no picture.
    """
    file = data / "heldout" / "annotations.json"
    try:
        pictures = json.loads(file.read_text(encoding="utf-8"))["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete {data} to have it made again") from None
    if not pictures:
        raise DataError(f"{file}: holds no picture; delete {data} to have it made again")
    random.Random(SEED).shuffle(pictures)
    return pictures


def ask(
    cfg_path: str, options: list[str], checkpoints: dict[str, Path], files: list[Path], max_new_tokens: int, batch: int
) -> Answers:
    """The question about every picture, greedily, with the projection of each stage in one and the same model.

    Args:
        cfg_path, options: a chat config; its `model.ckpt` is replaced by `checkpoints`, in turn.
        files: the pictures; `batch` of them are answered at once.
    """
    from ..serve import build_chat

    first = next(iter(checkpoints.values()))
    chat = build_chat(load_config(cfg_path, [*options, f"model.ckpt={first}"], mode="chat"), choose_device())
    answers: Answers = {}
    for stage, checkpoint in checkpoints.items():
        chat.model.load_trained(str(checkpoint))
        started, answers[stage] = time.monotonic(), []
        for at in range(0, len(files), batch):
            texts = chat.answer_batch(
                files[at : at + batch], DEFAULT_QUESTION, do_sample=False, max_new_tokens=max_new_tokens
            )
            # Counted again from the text, where a blank at an end may be lost: hence the 1.
            answers[stage] += [(text, len(chat.model.token_ids(text)) >= max_new_tokens - 1) for text in texts]
            done = len(answers[stage])
            left = (time.monotonic() - started) / done * (len(files) - done)
            print(f"{stage}: {done}/{len(files)} pictures, {left:.0f} s left", flush=True)
    return answers


def made_from(data: Path, pictures: list[dict], checkpoints: dict[str, Path], **settings) -> dict:
    """What the answers depend on: while it stays the same, so do they."""
    files = {picture["image"]: sha256(data / "heldout" / picture["image"]) for picture in pictures}
    trained = {stage: sha256(checkpoint) for stage, checkpoint in checkpoints.items()}
    return {**trained, **settings, "question": DEFAULT_QUESTION, "pictures": files}


def known(results_file: Path, source: dict) -> Answers | None:
    """The answers in an earlier results.json, if they were made from just this."""
    try:
        results = json.loads(results_file.read_text(encoding="utf-8"))
        if results["made_from"] != source:
            return None
        return {s: [(p[s]["answer"], p[s]["hit_limit"]) for p in results["pictures"]] for s in STAGES}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluate(pictures: list[dict], answers: Answers, vocabulary: Vocabulary) -> dict:
    """Scores, and each picture with what was said of it, as plain values for results.json."""
    judged = {
        stage: [scores.judge(text, limit, p, vocabulary) for (text, limit), p in zip(rows, pictures, strict=True)]
        for stage, rows in answers.items()
    }
    return {
        "question": DEFAULT_QUESTION,
        **compared(
            {stage: scores.measures(pictures, rows) for stage, rows in judged.items()},
            [picture["image"] for picture in pictures],
        ),
        "swapped": {
            stage: scores.objects_right_swapped(pictures, [text for text, _ in rows], vocabulary)
            for stage, rows in answers.items()
        },
        "objects": sum(len(picture["objects"]) for picture in pictures),
        "vocabulary": [[name, list(synonyms)] for name, synonyms in vocabulary],
        "shown": [picture["image_id"] for picture in pictures[:SHOWN]],
        "pictures": [p | {stage: judged[stage][i] for stage in judged} for i, p in enumerate(pictures)],
    }
