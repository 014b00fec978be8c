"""Annotation files -> records. The format is read off the file; docs/evaluation.md says where each one is to be had."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import DataError
from ..common.paths import read_text
from ..datasets.image_text import folder_of_images, read_json_lines, read_photos
from ..processors.image_processors import SUFFIXES, pictures_in
from . import vqa_data
from .records import EXAMPLES, WHERE, Record, image_folder

MAIN_AREA = 0.05  # of the picture: from there on an annotated COCO object is a main one


def read_records(
    data: Sequence[str], images: str | None, split: str | None, limit: int | None, kinds: Sequence[str]
) -> list[Record]:
    """What `--data`, `--images`, `--split` and `--limit` name, for a suite that reads `kinds`.

    Args:
        limit: so many of them, chosen at random but always the same.
    Raises:
        DataError: files that are missing, no known format, of no use to this suite, or do not belong together.
    """
    found: dict[str, tuple[Path, object]] = {}
    for name in data:
        kind, content = detect(name)
        listed = sorted(Path(name).glob("*.jsonl")) if kind == "folder" and kind not in kinds else []
        if len(listed) == 1:  # the list of the pictures beside it
            name = str(listed[0])
            kind, content = detect(name)
        if kind not in kinds:
            wanted = "".join(f"\n  {k}: {WHERE[k]}" for k in kinds)
            raise DataError(
                f"--data {name}: this is {'a folder' if kind == 'folder' else kind}, which the suite does not read. "
                f"It reads{wanted}"
                f"{lines_to_write(kind, content, kinds)}"
            )
        if kind in found:
            raise DataError(f"--data: {found[kind][0]} and {name} are both {kind}; name one")
        found[kind] = (Path(name), content)
    if "photos" in found:
        records = _photos(found["photos"][0], images, split)
    elif "folder" in found:
        records = [Record(p.name, p, {}) for p in found["folder"][1]]
    elif "karpathy" in found:
        records = _karpathy(*found["karpathy"], images, split)
    elif "coco captions" in found or "coco instances" in found:
        records = _coco(found, images, split)
    else:
        records = vqa_data.read(found, images, split)
    records = limited(records, limit)
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
    chosen = set(random.Random(0).sample(range(len(records)), limit))
    return [r for i, r in enumerate(records) if i in chosen]


def detect(name: str) -> tuple[str, object]:
    """The kind of a `--data` argument, a key of WHERE, and its content where it is JSON."""
    path = Path(name)
    if name == "easy-vqa":
        return "easy-vqa", None
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
    except (ValueError, RecursionError) as error:
        raise DataError(f"--data {name}: not JSON: {error}") from None
    kind = _kind(content)
    if kind is None:
        known = "".join(f"\n  {k}: {where}" for k, where in WHERE.items())
        raise DataError(f"--data {name}: none of the formats that are read:{known}")
    return kind, content


def lines_to_write(kind: str, content: object, kinds: Sequence[str]) -> str:
    """The first two lines of a file of one's own, where the suite reads such a file."""
    own = next((k for k in kinds if k in EXAMPLES), None)
    if own is None:
        return ""
    if kind == "folder":
        names = [path.name for path in content]
    elif kind in EXAMPLES:
        names = list(dict.fromkeys(str(entry.get("image", "a.jpg")) for _, entry in content))
    else:
        names = []
    lines = [json.dumps({"image": name, **EXAMPLES[own]}) for name in (*names, "a.jpg", "b.jpg")[:2]]
    return "\n  ".join(["\nWrite a line for each into a .jsonl file beside the pictures, in your words:", *lines])


def _kind(content) -> str | None:
    def first(key: str | None = None) -> dict:
        """The first entry of the content, or of its list `key`; {} if there is none."""
        entries = content.get(key) if key else content
        entries = list(entries.values()) if isinstance(entries, dict) else entries
        return entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}

    if isinstance(content, list):
        return "aokvqa" if {"question_id", "image_id", "question", "choices"} <= first().keys() else None
    if not isinstance(content, dict):
        return None
    if {"question_id", "image_id", "question"} <= first("questions").keys():
        return "vqa questions"
    if {"question_id", "answers"} <= first("annotations").keys():
        return "vqa annotations"
    if {"image_id", "category_id"} <= first("annotations").keys():
        return "coco instances"
    if {"image_id", "caption"} <= first("annotations").keys() and "images" in content:
        return "coco captions"
    if {"sentences", "filename"} <= first("images").keys():
        return "karpathy"
    return "gqa" if {"imageId", "question"} <= first().keys() else None


def _photos(file: Path, images: str | None, split: str | None) -> list[Record]:
    pairs = read_photos(str(file), images, [split] if split else None)
    folder = folder_of_images(file, images)
    more = {}
    if all(len(captions) == 1 for _, captions in pairs):  # made from labels: which of them it is can be asked
        more["choices"] = tuple(sorted({captions[0] for _, captions in pairs}))
    return [Record(str(p.relative_to(folder)), p, {"captions": captions, **more}) for p, captions in pairs]


def _karpathy(file: Path, content: dict, images: str | None, split: str | None) -> list[Record]:
    folder, entries = image_folder(images, file), content["images"]
    splits = {e.get("split") for e in entries}
    if split and split not in splits:
        raise DataError(f"{file}: no split {split}; it has {', '.join(sorted(map(str, splits)))}")
    records = []
    for e in entries:
        if split is None or e.get("split") == split:
            place = folder / e.get("filepath", "") / e["filename"]
            image = place if place.is_file() else folder / e["filename"]
            records.append(Record(e["filename"], image, {"captions": [s["raw"] for s in e["sentences"]]}))
    return records


def _coco(found: dict, images: str | None, split: str | None) -> list[Record]:
    """Captions, instances, or both of the same images."""
    file, content = found.get("coco captions") or found["coco instances"]
    folder = image_folder(images, file)
    entries = {e["id"]: e for e in content["images"]}
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"] if "coco captions" in found else ():
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    objects, mains = None, {}
    if "coco instances" in found:
        other, instances = found["coco instances"]
        objects, mains = coco_objects(instances)
        strange = [i for i in entries if i not in objects]
        if strange:
            raise DataError(
                f"{other}: {len(strange)} of the {len(entries)} images of {file} are not in it, for example "
                f"{entries[strange[0]]['file_name']}; name captions and instances of the same split"
            )
    if split and not any(split in e["file_name"] for e in entries.values()) and split not in file.name:
        raise DataError(f"{file}: neither its name nor its images' names hold {split!r}: the wrong split?")
    records = []
    for i, e in entries.items():
        truth = {"captions": captions.get(i, [])}
        if objects is not None:
            truth |= {"objects": objects[i], "main": mains[i]}
        if "coco captions" not in found or captions.get(i):
            records.append(Record(str(i), folder / e["file_name"], truth))
    return records


def coco_objects(instances: dict) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(categories in each image; its main ones: those whose largest instance, no crowd, covers MAIN_AREA or more, else
    the largest of all), by image id."""
    names = {c["id"]: c["name"] for c in instances["categories"]}
    size = {e["id"]: e["height"] * e["width"] for e in instances["images"]}
    largest: dict[int, dict[str, float]] = {i: {} for i in size}
    everything: dict[int, set[str]] = {i: set() for i in size}
    for a in instances["annotations"]:
        areas, name = largest[a["image_id"]], names[a["category_id"]]
        everything[a["image_id"]].add(name)
        if not a.get("iscrowd"):
            areas[name] = max(areas.get(name, 0.0), a["area"] / size[a["image_id"]])
    mains = {}
    for i, areas in largest.items():
        ordered = sorted(areas, key=lambda name: (-areas[name], name))
        mains[i] = [name for name in ordered if areas[name] >= MAIN_AREA] or ordered[:1]
    return {i: sorted(found) for i, found in everything.items()}, mains
