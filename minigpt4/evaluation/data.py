"""Annotation files -> records. The format is recognized from the file's content."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import DataError
from ..common.paths import read_text
from ..datasets.image_text import folder_of_images, inside, read_json_lines, read_photos
from ..processors.image_processors import SUFFIXES, pictures_in

FORMATS = tomllib.loads(Path(__file__).with_name("formats.toml").read_text(encoding="utf-8"))  # by their kind
QUESTION_LINE = '{"image": "a.jpg", "question": "What animal is this?", "answer": "dog"}'
MAIN_AREA = 0.05  # of the picture: from there on an annotated COCO object is a main one
Found = dict[str, tuple[Path, object]]  # kind -> (file, its content)


@dataclass(frozen=True)
class Record:
    """One picture, or one question about one."""

    id: str  # unique in its data
    image: Path
    truth: dict  # captions; objects (COCO's categories in it), main; question, answers, rule, type; choices, correct


def read_records(
    data: Sequence[str], images: str | None, split: str | None, limit: int | None, kinds: Collection[str]
) -> list[Record]:
    """What `--data`, `--images`, `--split` and `--limit` name, for a suite that reads `kinds`. Raises DataError."""
    found: Found = {}
    for name in data:
        kind, content = detect(name)
        if kind == "folder" and kind not in kinds and len(listed := list(Path(name).glob("*.jsonl"))) == 1:
            name = str(listed[0])  # the list of the pictures beside it
            kind, content = detect(name)
        if kind not in kinds:
            wanted = "".join(f"\n  {k}: {FORMATS[k]['where']}" for k in kinds)
            raise DataError(f"--data {name}: this is {kind}, which the suite does not read. It reads{wanted}")
        if kind in found:
            raise DataError(f"--data: {found[kind][0]} and {name} are both {kind}; name one")
        if split and "splits" not in FORMATS[kind]:
            raise DataError(f"--split {split}: {name} holds one split alone; leave --split out")
        found[kind] = (Path(name), content)
    reader = next(reader for kind, reader in READERS.items() if kind in found)
    records = limited(reader(found, images, split), limit)
    missing = [r.image for r in records if not r.image.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images are not there, for example {missing[0]}; "
            "--images names the folder that holds them"
        )
    return records


def limited(records: list[Record], limit: int | None) -> list[Record]:
    """So many of them, chosen at random but always the same, in their order; None: all."""
    if not limit or limit >= len(records):
        return records
    return [records[i] for i in sorted(random.Random(0).sample(range(len(records)), limit))]


def detect(name: str) -> tuple[str, object]:
    """The kind of a `--data` argument, a key of FORMATS, and its content."""
    path = Path(name)
    if path.is_dir():
        files = pictures_in(path)
        if not files and not any(path.glob("*.jsonl")):
            raise DataError(f"--data {name}: no pictures in this folder ({', '.join(SUFFIXES)})")
        return "folder", files
    if not path.is_file():
        raise DataError(f"--data {name}: no such file or folder")
    if path.suffix == ".jsonl":
        lines = read_json_lines(path)
        return ("questions" if lines and "question" in lines[0][1] else "photos"), lines
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"--data {name}: not JSON: {error}") from None
    for kind, known in FORMATS.items():
        entries = content
        if "list" in known:
            entries = content.get(known["list"]) if isinstance(content, dict) else None
        first = next(iter(entries.values() if isinstance(entries, dict) else entries or ()), None)
        filter_cap = kind == "coco captions" and "images" not in content
        if "keys" in known and isinstance(first, dict) and {*known["keys"]} <= first.keys() and not filter_cap:
            return kind, content
    known = "".join(f"\n  {kind}: {known['where']}" for kind, known in FORMATS.items())
    raise DataError(f"--data {name}: none of the formats that are read:{known}")


def _photos(found: Found, images: str | None, split: str | None) -> list[Record]:
    file, _ = found["photos"]
    pairs = read_photos(str(file), images, [split] if split else None)
    folder, truth = folder_of_images(file, images), {}
    if all(len(captions) == 1 for _, captions in pairs):  # made from labels: which of them it is can be asked
        truth["choices"] = tuple(sorted({captions[0] for _, captions in pairs}))
    return [Record(str(p.relative_to(folder)), p, {"captions": captions, **truth}) for p, captions in pairs]


def _karpathy(found: Found, images: str | None, split: str | None) -> list[Record]:
    file, content = found["karpathy"]
    folder, records = _image_folder(images, file), []
    for e in _of_split(file, content["images"], split):
        place = folder / e.get("filepath", "") / e["filename"]
        image = place if place.is_file() else folder / e["filename"]
        records.append(Record(e["filename"], image, {"captions": [s["raw"] for s in e["sentences"]]}))
    return records


def _coco(found: Found, images: str | None, split: str | None) -> list[Record]:
    """Captions, instances, or both of the same images."""
    file, content = found.get("coco captions") or found["coco instances"]
    folder = _image_folder(images, file)
    names = {e["id"]: e["file_name"] for e in content["images"]}
    truths: dict[int, dict] = {i: {} for i in names}
    if "coco captions" in found:
        for annotation in content["annotations"]:
            truths[annotation["image_id"]].setdefault("captions", []).append(annotation["caption"])
        truths = {i: truth for i, truth in truths.items() if truth}
    if "coco instances" in found:
        other, instances = found["coco instances"]
        objects = _coco_objects(instances)
        _need(f"{other}: {{}} images of {file} are not in it", list(names), objects)
        truths = {i: truth | objects[i] for i, truth in truths.items()}
    return [Record(str(i), folder / names[i], truth) for i, truth in truths.items()]


def _coco_objects(instances: dict) -> dict[int, dict[str, list[str]]]:
    """Of each image, by id: `objects`, its categories; `main`, those whose largest instance (no crowd) covers MAIN_AREA
    or more, else the largest of all."""
    names = {c["id"]: c["name"] for c in instances["categories"]}
    size = {e["id"]: e["height"] * e["width"] for e in instances["images"]}
    largest: dict[int, dict[str, float]] = {i: {} for i in size}
    for a in instances["annotations"]:
        areas, name = largest[a["image_id"]], names[a["category_id"]]
        area = 0.0 if a.get("iscrowd") else a["area"] / size[a["image_id"]]
        areas[name] = max(areas.get(name, 0.0), area)
    found = {}
    for i, areas in largest.items():
        ordered = sorted(filter(areas.get, areas), key=lambda name: (-areas[name], name))
        main = [name for name in ordered if areas[name] >= MAIN_AREA] or ordered[:1]
        found[i] = {"objects": sorted(areas), "main": main}
    return found


def _questions(found: Found, images: str | None, split: str | None) -> list[Record]:
    """JSON lines of one's own: image, question, and `answer` or a list of `answers`, each of which is right."""
    file, lines = found["questions"]
    folder, records = folder_of_images(file, images), []
    for e in _of_split(file, [{**entry, "where": where} for where, entry in lines], split):
        answers = e.get("answers", [e.get("answer")])
        good = isinstance(answers, list) and answers and all(isinstance(a, (str, int)) and str(a) for a in answers)
        if not (good and all(isinstance(e.get(key), str) and e[key] for key in ("image", "question"))):
            raise DataError(f"{e['where']}: needs image, question and answer (texts); write {QUESTION_LINE}")
        image = inside(folder, e["image"], file)
        records.append(_question(e["where"].rsplit(":", 1)[1], image, e["question"], [*map(str, answers)], "exact",
                                 str(e.get("type", ""))))  # fmt: skip
    return records


def _question(id: str, image: Path, question: str, answers: list[str], rule: str, kind: str = "") -> Record:
    return Record(id, image, {"question": question, "answers": answers, "rule": rule, "type": kind})


def _vqa(found: Found, images: str | None, split: str | None) -> list[Record]:
    """VQA v2 and OK-VQA: ten answers a question."""
    for kind in ("vqa questions", "vqa annotations"):
        if kind not in found:
            raise DataError(f"--data: VQA comes in two files, the {kind[4:]} are missing: {FORMATS[kind]['where']}")
    (file, content), (other, annotations) = found["vqa questions"], found["vqa annotations"]
    questions = content["questions"]
    people = {a["question_id"]: a for a in annotations["annotations"]}
    _need(f"{file}: {{}} questions have no annotation in {other}", [q["question_id"] for q in questions], people)
    places, records = _coco_images(images, file, (q["image_id"] for q in questions)), []
    for q in questions:
        annotation = people[q["question_id"]]
        answers = [a["answer"] for a in annotation["answers"]]
        records.append(_question(str(q["question_id"]), places[q["image_id"]], q["question"], answers, "soft",
                                 annotation.get("answer_type", "")))  # fmt: skip
    return records


def _aokvqa(found: Found, images: str | None, split: str | None) -> list[Record]:
    """A-OKVQA: four choices, and ten direct answers; where these are marked "difficult", the choices alone."""
    file, content = found["aokvqa"]
    entries = _of_split(file, content, split)
    answered = {e["question_id"] for e in entries if "correct_choice_idx" in e}
    _need(f"{file}: {{}} questions have no answers; the test split's are not public",
          [e["question_id"] for e in entries], answered)  # fmt: skip
    places, records = _coco_images(images, file, (e["image_id"] for e in entries)), []
    for e in entries:
        truth = {"question": e["question"], "choices": e["choices"], "correct": e["correct_choice_idx"]}
        if e.get("direct_answers") and not e.get("difficult_direct_answer"):
            truth |= {"answers": e["direct_answers"], "rule": "counted"}
        records.append(Record(e["question_id"], places[e["image_id"]], truth))
    return records


def _gqa(found: Found, images: str | None, split: str | None) -> list[Record]:
    file, entries = found["gqa"]
    folder = _image_folder(images, file)
    _need(f"{file}: {{}} questions have no answer", list(entries), {key for key, e in entries.items() if "answer" in e})
    return [
        _question(key, folder / f"{e['imageId']}.jpg", e["question"], [e["answer"]], "exact",
                  e.get("types", {}).get("structural", ""))
        for key, e in entries.items()
    ]  # fmt: skip


READERS = {
    "photos": _photos, "karpathy": _karpathy, "coco captions": _coco, "coco instances": _coco, "gqa": _gqa,
    "questions": _questions, "aokvqa": _aokvqa, "vqa questions": _vqa, "vqa annotations": _vqa,
    "folder": lambda found, images, split: [Record(path.name, path, {}) for path in found["folder"][1]],
}  # fmt: skip


def _of_split(file: Path, entries: Sequence[dict], split: str | None) -> list[dict]:
    """The entries of a split; None: all."""
    splits = sorted({str(e.get("split")) for e in entries})
    if split and split not in splits:
        raise DataError(f"{file}: no split {split}; it has {', '.join(splits)}")
    return [e for e in entries if split in (None, e.get("split"))]


def _image_folder(images: str | None, file: Path) -> Path:
    if images is None or not Path(images).is_dir():
        raise DataError(f"--images {images}: no such folder; {file} names images without one, so add --images FOLDER")
    return Path(images)


def _coco_images(images: str | None, file: Path, ids: Collection[int]) -> dict[int, Path]:
    """The file of each COCO image id, the 12 digits at the end of its name (COCO_val2014_000000000139.jpg)."""
    folder = _image_folder(images, file)
    numbered = ((re.search(r"(\d{12})\.(?:jpg|jpeg|png)$", path.name), path) for path in folder.iterdir())
    found = {int(match[1]): path for match, path in numbered if match}
    return {i: found.get(i, folder / f"{i:012}.jpg") for i in ids}


def _need(message: str, wanted: Sequence, known: Collection) -> None:
    """Raise DataError where some of `wanted` are not known; `{}` in the message is for their number."""
    if lost := [key for key in wanted if key not in known]:
        raise DataError(f"{message.replace('{}', f'{len(lost)} of {len(wanted)}')}; for example {lost[0]}")
