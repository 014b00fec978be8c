"""Questions of one's own, VQA v2, OK-VQA, GQA, A-OKVQA and easy-vqa -> records with a question each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..common.errors import DataError
from ..common.packages import require_packages
from ..datasets.image_text import folder_of_images, inside
from .records import EXAMPLES, WHERE, Record, by_coco_id, image_folder

KINDS = ("questions", "vqa questions", "vqa annotations", "aokvqa", "gqa", "easy-vqa")


def read(found: dict[str, tuple[Path, object]], images: str | None, split: str | None) -> list[Record]:
    """The records of what `data.detect` found: kind -> (file, its content)."""
    if "questions" in found:
        return _questions(*found["questions"], images, split)
    if "easy-vqa" in found:
        return _easy_vqa(split or "test")
    if "aokvqa" in found:
        return _aokvqa(*found["aokvqa"], images, split)
    if "gqa" in found:
        return _gqa(*found["gqa"], images)
    for kind in ("vqa questions", "vqa annotations"):
        if kind not in found:
            given = ", ".join(str(file) for file, _ in found.values())
            raise DataError(f"--data {given}: VQA comes in two files, the {kind[4:]} are missing: {WHERE[kind]}")
    return _vqa(*found["vqa questions"], *found["vqa annotations"], images, split)


def _questions(file: Path, lines: list[tuple[str, dict]], images: str | None, split: str | None) -> list[Record]:
    """JSON lines of one's own: image, question, and `answer` or a list of `answers`, each of which is right."""
    folder, records = folder_of_images(file, images), []
    for where, entry in lines:
        answers = entry.get("answers", [entry.get("answer")])
        good = isinstance(answers, list) and answers and all(isinstance(a, (str, int)) and str(a) for a in answers)
        if not (good and all(isinstance(entry.get(key), str) and entry[key] for key in ("image", "question"))):
            example = json.dumps({"image": "a.jpg", **EXAMPLES["questions"]})
            raise DataError(f"{where}: needs image, question and answer (texts); write {example}")
        if split is None or entry.get("split") == split:
            truth = {"question": entry["question"], "answers": list(map(str, answers)), "rule": "exact",
                     "type": str(entry.get("type", ""))}  # fmt: skip
            records.append(Record(where.rsplit(":", 1)[1], inside(folder, entry["image"], file), truth))
    if not records:
        splits = sorted({str(entry.get("split")) for _, entry in lines})
        raise DataError(f"{file}: no questions of split {split}; it has {', '.join(splits)}")
    return records


def _vqa(file: Path, questions: dict, other: Path, annotations: dict, images: str | None, split: str | None):
    """VQA v2 and OK-VQA: ten answers a question."""
    ours, theirs = questions.get("data_subtype"), annotations.get("data_subtype")
    if ours and theirs and ours != theirs:
        raise DataError(f"{file} is of {ours}, {other} of {theirs}: name questions and annotations of the same split")
    if split and ours and split != ours:
        raise DataError(f"{file}: its split is {ours}, not {split}")
    answers = {a["question_id"]: a for a in annotations["annotations"]}
    _complain(file, "have no annotation in " + str(other), [q["question_id"] for q in questions["questions"]], answers)
    folder = image_folder(images, file)
    places = by_coco_id(folder)
    records = []
    for q in questions["questions"]:
        annotation, image = answers[q["question_id"]], q["image_id"]
        if annotation.get("image_id", image) != image:
            raise DataError(
                f"{other}: question {q['question_id']} is about image {annotation['image_id']}, not {image}"
            )
        truth = {
            "question": q["question"], "answers": [a["answer"] for a in annotation["answers"]], "rule": "soft",
            "type": annotation.get("answer_type", ""),
        }  # fmt: skip
        records.append(Record(str(q["question_id"]), places.get(image, folder / f"{image:012}.jpg"), truth))
    return records


def _aokvqa(file: Path, entries: list[dict], images: str | None, split: str | None) -> list[Record]:
    """A-OKVQA: four choices, and ten direct answers; where these are marked "difficult", the choices alone."""
    folder, splits = image_folder(images, file), {e.get("split", "") for e in entries}
    if split and split not in splits:
        raise DataError(f"{file}: no split {split}; it has {', '.join(sorted(splits))}")
    entries = [e for e in entries if not split or e.get("split") == split]
    answered = [e["question_id"] for e in entries if "correct_choice_idx" in e]
    _complain(file, "have no answers; the test split's are not public", [e["question_id"] for e in entries], answered)
    places = by_coco_id(folder)
    records = []
    for e in entries:
        truth = {"question": e["question"], "choices": e["choices"], "correct": e["correct_choice_idx"], "type": ""}
        if e.get("direct_answers") and not e.get("difficult_direct_answer"):
            truth |= {"answers": e["direct_answers"], "rule": "counted"}
        place = places.get(e["image_id"], folder / f"{e['image_id']:012}.jpg")
        records.append(Record(e["question_id"], place, truth))
    return records


def _gqa(file: Path, entries: dict[str, dict], images: str | None) -> list[Record]:
    folder = image_folder(images, file)
    _complain(file, "have no answer", entries, [key for key, e in entries.items() if "answer" in e])
    return [
        Record(key, folder / f"{e['imageId']}.jpg", {
            "question": e["question"], "answers": [e["answer"]], "rule": "exact",
            "type": e.get("types", {}).get("structural", ""),
        })
        for key, e in entries.items()
    ]  # fmt: skip


def _easy_vqa(split: str) -> list[Record]:
    """The PyPI package easy-vqa: drawn shapes, 13 possible answers."""
    if split not in ("train", "test"):
        raise DataError(f"--split {split}: easy-vqa has train and test")
    require_packages("--data easy-vqa", "eval", "easy_vqa")
    import easy_vqa

    texts, answers, owners = getattr(easy_vqa, f"get_{split}_questions")()
    places = getattr(easy_vqa, f"get_{split}_image_paths")()
    choices = easy_vqa.get_answers()
    records = []
    for i, (text, answer, owner) in enumerate(zip(texts, answers, owners, strict=True)):
        truth = {
            "question": text, "answers": [answer], "rule": "exact",
            "choices": choices, "correct": choices.index(answer),
            "type": "yes/no" if answer in ("yes", "no") else "colour or shape",
        }  # fmt: skip
        records.append(Record(f"{split}-{i}", Path(places[owner]), truth))
    return records


def _complain(file: Path, what: str, wanted: Iterable, known: Iterable) -> None:
    wanted, known = list(wanted), set(known)
    lost = [key for key in wanted if key not in known]
    if lost:
        raise DataError(f"{file}: {len(lost)} of {len(wanted)} questions {what}; for example question {lost[0]}")
