"""`minigpt4 describe IMAGE...`: ask about pictures without a browser."""

from __future__ import annotations

import argparse
import json
import sys
import time

from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import UserError
from ..conversation.prompts import DEFAULT_QUESTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--prompt", default=DEFAULT_QUESTION, help="the question (default: %(default)s)")
    parser.add_argument("--cfg-path", default="eval_configs/tiny_eval.yaml", help="config (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of plain text")
    parser.add_argument("--greedy", action="store_true", help="the likeliest token every time, no sampling")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=300, help="longest answer (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")


def run(args: argparse.Namespace) -> int:
    """Describe every image; 1 when one of them could not be read (the others are answered all the same)."""
    from ..serve import build_chat

    device = choose_device(args.device, f"--device {args.device}")
    chat = build_chat(load_config(args.cfg_path, args.options, mode="chat"), device)
    return describe(chat, args)


def describe(chat, args: argparse.Namespace) -> int:
    """The loop over images. Answers go to stdout, each as soon as it is there; problems to stderr."""
    failed = 0
    for path in args.images:
        started = time.perf_counter()
        conv = chat.new_conversation()
        try:
            chat.upload_img(path, conv)
            chat.ask(args.prompt, conv)
            answer, ids = chat.answer(
                conv, seed=args.seed, do_sample=not args.greedy, max_new_tokens=args.max_new_tokens
            )
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        seconds = round(time.perf_counter() - started, 2)
        if args.json:
            line = {
                "image": path,
                "prompt": args.prompt,
                "answer": answer,
                "tokens": len(ids),
                "seconds": seconds,
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif len(args.images) > 1:
            print(f"{path}\n{answer}\n", flush=True)
        else:
            print(answer, flush=True)
    return failed
