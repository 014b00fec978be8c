"""`minigpt4 describe IMAGE... FOLDER...`: ask the model about pictures, in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import DataError, UserError
from ..conversation.prompts import DEFAULT_QUESTION
from ..processors.image_processors import SUFFIXES, pictures_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="picture files, or folders of them")
    add("--prompt", default=DEFAULT_QUESTION, help="the question (default: %(default)s)")
    add("--cfg-path", default="eval_configs/tiny_eval.yaml", help="config (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object a line instead of plain text")
    add("--greedy", action="store_true", help="always choose the most likely token instead of sampling")
    add("--seed", type=int, default=42, help="seed of the sampling (default: %(default)s)")
    add("--max-new-tokens", type=int, default=300, help="longest answer (default: %(default)s)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")


def run(args: argparse.Namespace) -> int:
    from . import build_chat

    args.images = [picture for path in args.images for picture in pictures_of(path)]
    device = choose_device(args.device, f"--device {args.device}")
    chat = build_chat(load_config(args.cfg_path, args.options, mode="chat"), device)
    return describe(chat, args)


def pictures_of(path: str) -> list[str]:
    """The picture files of a folder, or the file itself. Raises DataError for a folder without pictures."""
    found = list(map(str, pictures_in(Path(path)))) if Path(path).is_dir() else [path]
    if not found:
        raise DataError(f"{path}: no pictures in this folder ({', '.join(SUFFIXES)})")
    return found


def describe(chat, args: argparse.Namespace) -> int:
    """Print the answer about each image as soon as it is there. Returns 1 when one of them could not be read."""
    failed = 0
    options = {"seed": args.seed, "do_sample": not args.greedy, "max_new_tokens": args.max_new_tokens}
    for path in args.images:
        started, conv = time.perf_counter(), chat.new_conversation()
        try:
            chat.upload_img(path, conv)
            chat.ask(args.prompt, conv)
            answer, ids = chat.answer(conv, **options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        if args.json:
            seconds = round(time.perf_counter() - started, 2)
            line = {"image": path, "prompt": args.prompt, "answer": answer, "tokens": len(ids), "seconds": seconds}
            # Characters that the terminal cannot show are written as JSON escapes.
            print(json.dumps(line, ensure_ascii=(sys.stdout.encoding or "").lower() != "utf-8"), flush=True)
        else:
            print(f"{path}\n{answer}\n" if len(args.images) > 1 else answer, flush=True)
    return failed
