"""`minigpt4 config --cfg-path X`: what the config comes to, key by key, and where each value came from."""

import argparse
import sys

from ..common.config import describe_config, load_config
from ..common.errors import ConfigError, UserError
from ..common.schema import Config, RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--docs", action="store_true", help="print the meaning of each key too")
    parser.add_argument(
        "--mode", choices=("train", "chat"), default=None, help="also check what training or chat needs"
    )


def _precision(config: Config, run_section: RunConfig | None) -> str:
    """What would compute in which dtype on this machine, or why it cannot."""
    from ..common.dist_utils import choose_device
    from ..common.precision import resolve_precision

    try:
        return str(resolve_precision(config.model, choose_device(config.run.device), run_section))
    except UserError as error:
        return str(error)


def run(args: argparse.Namespace) -> int:
    """Print every key; the exit code is 1 when the config could not be used for training (or chat, with --mode)."""
    from .. import conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)

    try:
        config = load_config(args.cfg_path, args.options, mode="show")
    except ConfigError:
        if args.mode:  # its own message names the paths too
            load_config(args.cfg_path, args.options, mode=args.mode)
        raise
    rows = [(name, repr(value), origin, doc) for name, value, origin, doc in describe_config(config)]
    wide = max(len(name) for name, *_ in rows)
    value_wide = min(max(len(value) for _, value, *_ in rows), 48)
    for name, value, origin, doc in rows:
        print(f"{name:{wide}}  {value:{value_wide}}  # {origin}" + (f": {doc}" if args.docs else ""))
    for what, run_section in (("training", config.run), ("chat", None)) if config.datasets else (("chat", None),):
        print(f"# precision in {what}: {_precision(config, run_section)}")
    if args.mode is None:
        return 0
    try:
        load_config(args.cfg_path, args.options, mode=args.mode)
    except ConfigError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\nready for {args.mode}")
    return 0
