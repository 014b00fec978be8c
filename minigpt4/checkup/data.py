"""`minigpt4 data check ...`: find the faults of training data before a run does."""

import argparse
import json
import sys
from pathlib import Path

from ..common.errors import DataError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="decode every sample and say which cannot be used")
    check.add_argument(
        "data", nargs="*", metavar="SHARDS",
        help="shards (pattern, glob or URL), a folder with filter_cap.json, or a .jsonl of captioned photos",
    )  # fmt: skip
    check.add_argument("--cfg-path", help="check every dataset of this training config, with its own processors")
    check.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    check.add_argument("--images", help="folder of the images of a .jsonl (default: photos/ beside it)")
    check.add_argument("--jobs", type=int, help="processes (default: one for each CPU)")
    check.add_argument("--jsonl", metavar="FILE", help="also write a JSON line for each part and dataset")
    check.add_argument(
        "--max-bad-share", type=float, help="exit code 1 above this share (default: the config's, or 0.05)"
    )


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 when a run would stop at these data, 130 after Ctrl-C."""
    from . import data_check
    from .data_report import by_dataset, tell

    if bool(args.data) == bool(args.cfg_path):
        raise UserError("data check: write either shards, folders and files to check, or --cfg-path X")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: {args.jobs} should be at least 1")
    if args.cfg_path:
        sources, share = data_check.sources_of_config(args.cfg_path, args.options)
    else:
        sources, share = data_check.sources_of_paths(args.data, args.images), 0.05
    share = share if args.max_bad_share is None else args.max_bad_share
    reports, finished = data_check.check(sources, args.jobs)
    totals = by_dataset(reports)
    if args.jsonl:
        _write_lines(args.jsonl, reports, totals)
    for line in tell(reports, totals):
        print(line)
    if not finished:
        print("\nstopped by the user: what is said above is of the parts that were read whole", file=sys.stderr)
        return 130
    reasons = [reason for total in totals for reason in total.reasons(share)]
    for reason in reasons:
        print(f"error: {reason}", file=sys.stderr)
    if not reasons:
        print(f"\nready for training (at most {share:.0%} may be bad)")
    return 1 if reasons else 0


def _write_lines(file: str, reports: list, totals: list) -> None:
    lines = [json.dumps(row.as_dict(), ensure_ascii=True) for row in [*reports, *totals]]
    try:
        Path(file).write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"--jsonl {file}: cannot be written: {error.strerror}") from None
