"""The folder that stage 2 reads: filter_cap.json and image/, and beside them curation.jsonl, how each text was made."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import DataError
from ..common.file_system import if_supported
from ..common.paths import write_whole
from ..evaluation.data import Record
from ..evaluation.page import write_json


def image_ids(records: Sequence[Record]) -> list[str]:
    """A name for each photo's file in image/: its own, with the folders it lay in."""
    names: list[str] = []
    taken: set[str] = set()
    for record in records:
        name = os.path.splitext(record.id)[0].replace("/", "_").replace(os.sep, "_")
        while name in taken:  # a.jpg and a.png
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def prepare(out: Path, records: Sequence[Record]) -> None:
    """Make `out`, or see that nothing of a user's is lost in it; this comes before the long work.

    Raises:
        DataError: it is no folder, somebody else's pairs lie in it, or another picture has the name of a photo.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    if (out / "filter_cap.json").exists() and not (out / "curation.jsonl").exists():
        raise DataError(f"--out {out} is a stage-2 folder that curate did not make; write another")
    for record, name in zip(records, image_ids(records), strict=True):
        target = _target(out, name)
        if _is_picture(target) and not filecmp.cmp(record.image, target, shallow=False):
            raise DataError(f"--out {out}: {target} is another picture than {record.image}; write another --out")


def write(out: Path, entries: Sequence[dict], copy: bool = False) -> None:
    """Write `out`; filter_cap.json comes last, so that a folder which has it is whole.

    Photos are linked: a second copy of a large set would fill the disk, and training reads through links. A PNG under
    the name .jpg is read all the same, by what is in it.

    Args:
        out: as `prepare` left it.
        entries: as run.py makes them; those without a text are told in curation.jsonl alone.
        copy: copy the photos, for a folder that is to be moved or sent elsewhere.
    Raises:
        DataError: the folder cannot be written.
    """
    kept = [entry for entry in entries if entry["text"]]
    try:
        (out / "image").mkdir(exist_ok=True)
        for entry in kept:
            _place(Path(entry["image"]), _target(out, entry["image_id"]), copy)
        lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
        write_whole(out / "curation.jsonl", "".join(f"{line}\n" for line in lines))
        pairs = [{"image_id": entry["image_id"], "caption": entry["text"]} for entry in kept]
        write_json({"annotations": pairs}, out / "filter_cap.json")
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written: {error}") from None


def _target(out: Path, name: str) -> Path:
    return out / "image" / f"{name}.jpg"


def _is_picture(target: Path) -> bool:
    """Whether a file itself is there, no link: a copy, or the user's own photo, of which there may be no other."""
    return target.is_file() and not target.is_symlink()


def _place(photo: Path, target: Path, copy: bool) -> None:
    if _is_picture(target):
        return  # `prepare` saw that it is this photo
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    if not copy:
        with if_supported("link files, so pictures are copied", part, errno.EPERM):
            part.symlink_to(photo.resolve())
    if not part.is_symlink():
        shutil.copyfile(photo, part)
    os.replace(part, target)
