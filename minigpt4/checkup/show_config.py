"""`minigpt4 config --cfg-path X`: what the config comes to, key by key, and where each value came from.

`python -m minigpt4.checkup.show_config > docs/config.md` writes the page of all keys.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields

from .. import conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)
from ..common.config import describe_config, load_config
from ..common.dist_utils import choose_device
from ..common.errors import ConfigError, UserError
from ..common.precision import resolve_precision
from ..common.schema import (
    UNUSED,
    BuildInfo,
    DatasetConfig,
    LoraConfig,
    ModelConfig,
    ProcessorConfig,
    QFormerConfig,
    RunConfig,
    meaning,
)

SECTIONS = {
    "model": ModelConfig,
    "model.qformer_kwargs": QFormerConfig,
    "model.lora": LoraConfig,
    "datasets.NAME": DatasetConfig,
    "datasets.NAME.build_info": BuildInfo,
    "datasets.NAME.vis_processor.train": ProcessorConfig,
    "run": RunConfig,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--docs", action="store_true", help="print the meaning of each key too")
    parser.add_argument(
        "--mode", choices=("train", "chat"), default=None, help="also check what training or chat needs"
    )


def run(args: argparse.Namespace) -> int:
    """Print every key; the exit code is 1 when the config could not be used for training (or chat, with --mode)."""
    try:
        config = load_config(args.cfg_path, args.options, mode="show")
    except ConfigError:
        if args.mode:  # its own message names the paths too
            load_config(args.cfg_path, args.options, mode=args.mode)
        raise
    rows = [(name, repr(value), origin, doc) for name, value, origin, doc in describe_config(config)]
    rows.sort(key=lambda row: row[3].startswith(UNUSED))
    wide = max(len(name) for name, *_ in rows)
    value_wide = min(max(len(value) for _, value, *_ in rows), 48)
    for name, value, origin, doc in rows:
        print(f"{name:{wide}}  {value:{value_wide}}  # {origin}")
        if args.docs:
            print(textwrap.indent(textwrap.fill(doc, 96), "    "), end="\n\n")
    for what, run_section in (("training", config.run), ("chat", None)) if config.datasets else (("chat", None),):
        try:
            said = resolve_precision(config.model, choose_device(config.run.device), run_section)
        except UserError as error:
            said = error
        print(f"# precision in {what}: {said}")
    if args.mode is None:
        return 0
    try:
        load_config(args.cfg_path, args.options, mode=args.mode)
    except ConfigError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\nready for {args.mode}")
    return 0


def docs_page() -> Iterator[str]:
    """The lines of docs/config.md: a table of keys for each section, then the keys that are not used."""
    yield "# Every key of a config\n"
    yield "`minigpt4 config --cfg-path X --docs` prints these texts beside the values of a config. A key that a config"
    yield "does not write has the default below, unless `minigpt4/configs/` has another for the model or dataset.\n"
    yield "`datasets.NAME.valid_info` has the keys of `build_info`; `vis_processor.eval` and `text_processor` have"
    yield "those of `vis_processor.train`.\n"
    rows = {name: [(f, f.metadata) for f in fields(cls) if "limits" in f.metadata] for name, cls in SECTIONS.items()}
    tables = [(f"`{name}`", name, found, False) for name, found in rows.items()]
    tables += [("Not used", name, rows[name], True) for name in ("model", "datasets.NAME", "run")]
    for number, (title, name, found, unused) in enumerate(tables):
        if not unused or number == len(rows):
            yield f"## {title}\n\n| key | default | meaning |\n|---|---|---|"
        for f, metadata in found:
            if metadata["doc"].startswith(UNUSED) == unused:
                default = f.default_factory() if callable(f.default_factory) else f.default
                shown = "null" if default is None else repr(default)
                yield f"| `{f'{name}.' if unused else ''}{f.name}` | `{shown}` | {meaning(metadata)} |"
        if not unused:
            yield ""


if __name__ == "__main__":
    print("\n".join(docs_page()))
