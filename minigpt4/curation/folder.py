"""Write the folder that stage 2 reads: filter_cap.json and image/, with curation.jsonl beside them."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import DataError
from ..common.file_system import whole_file
from ..common.paths import write_whole
from ..evaluation.data import Record
from ..evaluation.page import write_json


def image_ids(records: Sequence[Record]) -> list[str]:
    """A unique name for each photo's file in image/, made from its path: a/red.png -> a_red."""
    names: dict[str, None] = {}  # in order
    for record in records:
        name = os.path.splitext(record.id)[0].replace("/", "_")
        while name in names:  # a.jpg and a.png
            name += "_"
        names[name] = None
    return list(names)


def prepare(out: Path, records: Sequence[Record]) -> None:
    """Make `out`, and check before the long work that no file of the user's would be overwritten.

    Raises:
        DataError: `out` cannot be made, was not made by curate, or has another picture under a photo's name.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    if (out / "filter_cap.json").exists() and not (out / "curation.jsonl").exists():
        raise DataError(f"--out {out} is a stage-2 folder that curate did not make; write another")
    for record, name in zip(records, image_ids(records), strict=True):
        target = out / "image" / f"{name}.jpg"
        if _is_picture(target) and not filecmp.cmp(record.image, target, shallow=False):
            raise DataError(f"--out {out}: {target} is another picture than {record.image}; write another --out")


def write(out: Path, entries: Sequence[dict], copy: bool = False) -> None:
    """Write `out`, which `prepare` has checked. filter_cap.json comes last, so a folder that has it is complete.

    Photos are linked, since a copy of a large set could fill the disk. A PNG under the name .jpg is no problem: readers
    look at the content.

    Args:
        entries: one a photo, as run.py makes them; those without a text go into curation.jsonl alone.
        copy: copy the photos instead, for a folder that will be moved.
    Raises:
        DataError: the folder cannot be written.
    """
    kept = [entry for entry in entries if entry["text"]]
    try:
        (out / "image").mkdir(exist_ok=True)
        for entry in kept:
            target = out / "image" / f"{entry['image_id']}.jpg"
            if _is_picture(target):
                continue  # `prepare` checked that it is this photo
            target.unlink(missing_ok=True)
            if copy:
                with whole_file(target) as part:
                    shutil.copyfile(entry["image"], part)
            else:
                target.symlink_to(Path(entry["image"]).resolve())
        lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
        write_whole(out / "curation.jsonl", "".join(f"{line}\n" for line in lines))
        pairs = [{"image_id": entry["image_id"], "caption": entry["text"]} for entry in kept]
        write_json({"annotations": pairs}, out / "filter_cap.json")
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written: {error}; where links cannot be made, add --copy") from None


def _is_picture(target: Path) -> bool:
    """Whether a real file is there, not a link: it may be the user's only copy."""
    return target.is_file() and not target.is_symlink()
