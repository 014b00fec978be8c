"""`minigpt4 doctor --cfg-path X`: is everything that this config needs there, whole, and what it should be?

One page: the machine, every file (identified by what is in it), the form of prompts and answers, and a question
answered. Headers are read, not weights, so that a full-size model takes seconds; only the smoke generation loads it.

`checks.py` is the table: which check is made in which order. A check is a function in `machine.py`, `files.py` or
`llm.py`; what several of them need to know is in `context.py`. `smoke.py` asks the question, `page.py` prints.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ...common.config import read_config
from .page import WRONG, counts, page, terminal, verdict

if TYPE_CHECKING:
    from .context import Context

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
    config, findings, (width, colour) = seen.config, seen.findings, terminal()
    names = min(max(len(finding.name) for finding in findings), 26)  # a few long ones need not make it wide
    if not args.json:
        print(f"minigpt4 doctor: {config.path}, for {seen.mode}\n")
        print(page(findings, names, width, colour), flush=True)
    if not args.no_generate and not seen.no_smoke:
        from .smoke import smoke

        answer = smoke(config.path, args.options, str(seen.device), args.seconds, bool(config.model.ckpt))
        findings = [*findings, replace(answer, section="Smoke generation", name="answer")]
        if not args.json:
            print("\n" + page(findings[-1:], names, width, colour))
    if args.json:
        rows = [asdict(finding) for finding in findings]
        told = {"config": config.path, "mode": seen.mode, "counts": counts(findings), "rows": rows}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        skipped = f" No smoke generation: {seen.no_smoke}." if seen.no_smoke and not args.no_generate else ""
        print(f"\n{verdict(findings)}{skipped}")
    return 1 if counts(findings)[WRONG] else 0


def examine(cfg_path: str, options: list[str], mode: str | None = None, device: str | None = None) -> Context:
    """Make every check; only the smoke generation is not tried.

    Raises:
        ConfigError: the config file itself cannot be read.
    """
    from ... import runners, serve, tasks  # noqa: F401  (fill the registries, so that names are checked)
    from .checks import make_checks
    from .context import Context

    if mode is None:
        mode = "train" if "run.max_epoch" in read_config(cfg_path, options, mode="show")[0].origin else "chat"
    config, found = read_config(cfg_path, options, mode=mode)
    return make_checks(Context(config, mode, dict(line.split(": ", 1) for line in found), device))
