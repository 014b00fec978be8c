"""`minigpt4 curate --cfg-path X --data photos.jsonl --out FOLDER`: make stage-2 data with a stage-1 model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..common.config import load_config
from ..common.errors import DataError
from ..common.paths import write_whole
from ..evaluation.answering import chat_for
from ..evaluation.data import limited, read_records
from ..evaluation.judge import Judge
from ..evaluation.run import add_shared_arguments, check_arguments
from . import folder
from .clean import Cleaned, clean
from .describe import QUESTION, describe, edited, joined

KINDS = ("photos", "karpathy", "coco captions")  # files with human captions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg-path", default="eval_configs/tiny_eval.yaml", help="config of the stage-1 model (default: %(default)s)")
    what = "photos with human captions: photos.jsonl, COCO's or Karpathy's captions; with --unchecked a folder too"
    add("--data", required=True, metavar="FILE", help=what)
    add("--split", nargs="+", metavar="NAME", help="the splits to use (default: all)")
    add("--out", required=True, metavar="FOLDER", help="stage 2's folder: filter_cap.json, image/, curation.jsonl, ...")
    add("--prompt", default=QUESTION, help="what the model is asked (default: the paper's words)")
    add("--no-continue", action="store_true", help='leave out the second turn, "Continue", after short answers')
    add("--unchecked", action="store_true", help="do not compare with captions, as in the paper; people check by hand")
    add("--max-new-tokens", type=int, default=300, help="longest answer (default: %(default)s)")
    add("--copy", action="store_true", help="copy the photos into image/ instead of linking them")
    add_shared_arguments(parser, "edits the answers, by the paper's prompt")


def run(args: argparse.Namespace) -> int:
    """Describe, edit, clean, write. Under torchrun all processes describe, and the first one does the rest."""
    check_arguments(args)
    config = load_config(args.cfg_path, args.options, mode="chat")
    kinds, found = (*KINDS, "folder") if args.unchecked else KINDS, {}
    for split in args.split or [None]:
        found |= {r.id: r for r in read_records([args.data], args.images, split, None, kinds)}
    records = limited(list(found.values()), args.limit)
    out = Path(args.out)
    folder.prepare(out, records)
    decoding = {"do_sample": args.sample, "num_beams": 1, "max_new_tokens": args.max_new_tokens,
                **({"seed": args.seed} if args.sample else {})}  # fmt: skip
    said = describe(
        config, lambda: chat_for(config, args.device), records, decoding, out / "answers", args.prompt,
        not args.no_continue, args.batch,
    )  # fmt: skip
    if said is None:
        return 0
    whole = texts = [joined(first, second) for first, second in said]
    if args.judge:
        texts = edited(Judge(args.judge, args.judge_model, args.judge_key_env), texts, out / "edited.jsonl")
    entries = []
    for record, (first, second), text, name in zip(records, said, texts, folder.image_ids(records), strict=True):
        captions = record.truth.get("captions", [])
        if "unreadable" in first:
            print(f"left out: {first['unreadable']}", file=sys.stderr)
            done = Cleaned(lost="picture cannot be read")
        else:
            hit_limit = (second or first)["hit_limit"] and not args.judge
            done = clean(text, captions, hit_limit=hit_limit, checked=not args.unchecked)
        entries.append({
            "image_id": name, "image": str(record.image), "captions": captions, "answer": first["answer"],
            "continued": second and second["answer"], **({"edited": text} if args.judge else {}),
            "sentences": [{"text": part, "dropped": why} for part, why in done.sentences],
            "added": done.added, "text": done.text, "lost": done.lost,
        })  # fmt: skip
    if not any(entry["text"] for entry in entries):
        raise DataError(
            f"--data {args.data}: none of the {len(entries)} photos has a description that stays; "
            f"the model says, for example: {whole[0][:200]!r}"
        )
    folder.write(out, entries, copy=args.copy)
    write_whole(out / "report.html", folder.html_page(entries, args))
    for label, number in folder.counts(entries).items():
        print(f"{label:36}{number:>9}")
    print(f"\n{out / 'filter_cap.json'}, {out / 'curation.jsonl'}, {out / 'report.html'}")
    return 0
