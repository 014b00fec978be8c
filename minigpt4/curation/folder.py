"""Write the folder that stage 2 reads, filter_cap.json and image/, with curation.jsonl and report.html beside them."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import DataError
from ..common.paths import whole_file, write_whole
from ..evaluation.data import Record
from ..evaluation.page import SHOWN, document, render, write_json


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
    """Make `out`, and check before the long work that no file of the user's would be overwritten. Raises DataError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made a folder: {error.strerror}") from None
    if (out / "filter_cap.json").exists() and not (out / "curation.jsonl").exists():
        raise DataError(f"--out {out} is a stage-2 folder that curate did not make; write another")
    for record, name in zip(records, image_ids(records), strict=True):
        target = out / "image" / f"{name}.jpg"
        if is_picture(target) and not filecmp.cmp(record.image, target, shallow=False):
            raise DataError(f"--out {out}: {target} is another picture than {record.image}; write another --out")


def is_picture(target: Path) -> bool:
    """Whether a real file is there, not a link: it may be the user's only copy."""
    return target.is_file() and not target.is_symlink()


def write(out: Path, entries: Sequence[dict], copy: bool = False) -> None:
    """Write `out`, which `prepare` has checked. filter_cap.json comes last, so a folder that has it is complete.

    Photos are linked, since a copy of a large set could fill the disk. A PNG under the name .jpg is no problem: readers
    look at the content.

    Args:
        entries: one a photo, as run.py makes them; those without a text go into curation.jsonl alone.
        copy: copy the photos instead, for a folder that will be moved.
    """
    kept = [entry for entry in entries if entry["text"]]
    try:
        (out / "image").mkdir(exist_ok=True)
        for entry in kept:
            target = out / "image" / f"{entry['image_id']}.jpg"
            if is_picture(target):
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


def counts(entries: Sequence[dict]) -> dict[str, str]:
    """Label -> number, for the table and the page."""
    kept = [entry for entry in entries if entry["text"]]
    lost = Counter(entry["lost"] for entry in entries if not entry["text"])
    said = Counter(s["dropped"] for entry in entries for s in entry["sentences"])
    words = sum(len(entry["text"].split()) for entry in kept)
    rows = {"photos": len(entries), "… kept": len(kept)}
    rows |= {f"… dropped: {why}": count for why, count in lost.most_common()}
    rows |= {"sentences of the model": said.total(), "… of them kept": said.pop("", 0)}
    rows |= {f"… of them dropped: {why}": count for why, count in said.most_common()}
    rows["human captions added"] = sum(len(entry["added"]) for entry in kept)
    rows["texts with a sentence of the model"] = sum(any(not s["dropped"] for s in e["sentences"]) for e in kept)
    return {**{k: f"{n:,}" for k, n in rows.items()}, "words a text, mean": f"{words / max(len(kept), 1):.1f}"}


def html_page(entries: Sequence[dict], args: argparse.Namespace) -> str:
    """The page as text; pictures are embedded, small."""
    shown = random.Random(8).sample(entries, min(SHOWN, len(entries)))
    split = f", {' + '.join(args.split)}" if args.split else ""
    editor = f"{args.judge_model} at {args.judge}, then " if args.judge else ""
    rules = "the rules of form" if args.unchecked else "the rules of form and each photo's human captions"
    what = f"{Path(args.cfg_path).name} on {Path(args.data).name}{split}: {len(entries):,} photos"
    lead = f"{what}. Asked: “{args.prompt}” Cleaned by {editor}{rules}."
    body = render("curation/report.html", counts=counts(entries), shown=shown, total=len(entries))
    return document("Stage 2's pairs", "curation", lead, body)
