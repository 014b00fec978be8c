"""`minigpt4 doctor --cfg-path X`: is everything that this config needs there, whole, and what it should be?

One page: the machine, every file (identified by what is in it), how the LLM is spoken to, and a question answered. It
reads headers, not weights, so a full-size model is looked at in seconds; only the smoke generation loads it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.config import read_config
from ...common.schema import Config
from .page import WRONG, Row, as_json, counts, name_width, page, terminal, verdict

if TYPE_CHECKING:
    import torch

SECONDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument(
        "--mode", choices=("train", "chat"), help="what it is for (default: train if it has run.max_epoch)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")
    parser.add_argument("--no-generate", action="store_true", help="leave out the smoke generation")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="limit of the smoke generation (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the page")


def run(args: argparse.Namespace) -> int:
    """Print the page; exit code 1 when something is wrong."""
    seen = examine(args.cfg_path, args.options, args.mode, args.device)
    rows, (width, colour), names = seen.rows, terminal(), name_width(seen.rows)
    if not args.json:
        print(f"minigpt4 doctor: {seen.config.path}, for {seen.mode}\n")
        print(page(rows, names, width, colour), flush=True)
    if not args.no_generate and not seen.no_smoke:
        from .smoke import smoke

        trained = bool(seen.config.model.ckpt)
        rows = [*rows, smoke(seen.config.path, args.options, str(seen.device), args.seconds, trained)]
        if not args.json:
            print("\n" + page(rows[-1:], names, width, colour))
    if args.json:
        print(json.dumps(as_json(rows, config=seen.config.path, mode=seen.mode), indent=2, ensure_ascii=False))
    else:
        skipped = f" No smoke generation: {seen.no_smoke}." if seen.no_smoke and not args.no_generate else ""
        print(f"\n{verdict(rows)}{skipped}")
    return 1 if counts(rows)[WRONG] else 0


@dataclass(frozen=True)
class Seen:
    """What was found without loading a weight."""

    config: Config
    mode: str  # chat or train: what the config is for
    device: torch.device
    rows: list[Row]
    no_smoke: str  # why a smoke generation would make no sense; empty when it can be tried


def examine(cfg_path: str, options: list[str], mode: str | None = None, device: str | None = None) -> Seen:
    """Everything but the smoke generation.

    Raises:
        ConfigError: the config file itself cannot be read.
    """
    from ... import runners, serve, tasks  # noqa: F401  (fill the registries, so that names are checked)
    from .files import look_at_files
    from .machine import look_at_machine
    from .talk import look_at_talk

    if mode is None:
        config, _ = read_config(cfg_path, options, mode="show")
        mode = "train" if "run.max_epoch" in config.origin else "chat"
    config, found = read_config(cfg_path, options, mode=mode)
    problems = dict(line.split(": ", 1) for line in found)
    files = look_at_files(config, mode, problems)
    machine, chosen, enough = look_at_machine(config, files, mode, device)
    talk = look_at_talk(config, files.llm) if files.llm and files.llm.config else []
    rows = files.rows + [row for row in talk if row.name not in problems]
    told = {row.name for row in rows}
    rest = [Row("Config", WRONG, key, text) for key, text in problems.items() if key not in told]
    rows = [*machine, *rest, *rows]
    no_smoke = ""
    if counts(rows)[WRONG]:
        no_smoke = "first put right what is wrong"
    elif not enough or files.to_fetch:
        no_smoke = "a file is not fetched yet" if files.to_fetch else "too little memory"
    return Seen(config, mode, chosen, rows, no_smoke)
