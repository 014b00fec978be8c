"""`minigpt4 config --cfg-path X`: what the config comes to, key by key, and where each value came from."""

import argparse
import textwrap

from .. import conversation, tasks  # noqa: F401  (fill the registries, so that names are checked)
from ..common.config import describe_config, load_config
from ..common.dist_utils import choose_device
from ..common.errors import UserError
from ..common.precision import resolve_precision
from ..common.schema import UNUSED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--docs", action="store_true", help="print the meaning of each key too")


def run(args: argparse.Namespace) -> int:
    """Print every key, and the precision that each use of the config computes in."""
    config = load_config(args.cfg_path, args.options, mode="show")
    rows = sorted(describe_config(config), key=lambda row: row[3].startswith(UNUSED))
    wide = max(len(name) for name, *_ in rows)
    value_wide = min(max(len(repr(value)) for _, value, *_ in rows), 48)
    for name, value, origin, doc in rows:
        print(f"{name:{wide}}  {value!r:{value_wide}}  # {origin}")
        if args.docs:
            print(textwrap.indent(textwrap.fill(doc, 96), "    "), end="\n\n")
    for what, run_section in (("training", config.run), ("chat", None)) if config.datasets else (("chat", None),):
        try:
            said = resolve_precision(config.model, choose_device(config.run.device), run_section)
        except UserError as error:
            said = error
        print(f"# precision in {what}: {said}")
    return 0
