"""The command `minigpt4 plan`; page.txt is the page that it prints."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import jinja2

from ... import conversation, tasks  # noqa: F401  (fill the registries, so that names are checked)
from ...common.config import load_config
from ...common.errors import UserError
from ...common.gpus import EFFICIENCY, GPUS, IMAGES_PER_SECOND, NETWORK, find_gpu
from .predict import GIB, predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the YAML config; its weights and data need not be there")
    parser.add_argument("--gpu", default="a100-80g", help=f"{', '.join(GPUS)} (default: %(default)s)")
    parser.add_argument("--nproc", type=int, default=1, help="devices of a node (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes (default: %(default)s)")
    parser.add_argument("--llm", metavar="NAME", help="vicuna-13b, vicuna-7b, or the folder of another LLM")
    parser.add_argument("--tokens", type=int, help="text tokens of a row, padding included (default: max_txt_len)")
    parser.add_argument("--mode", choices=("train", "chat"), help="default: chat, if the config has no run of its own")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of a device, instead of the published")
    parser.add_argument("--tflops", type=float, help="peak TFLOP/s of a device, instead of the published")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="its memory bandwidth, likewise")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the plan; the exit code is 0 when it fits (or is tight), 1 when it does not."""
    for name in ("nproc", "nodes", "tokens", "memory", "tflops", "bandwidth"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}: {value} should be above 0")
    config = load_config(args.cfg_path, args.options, mode="show")
    if config.model.arch != "mini_gpt4":
        raise UserError(f"{config.path}: plan counts model.arch mini_gpt4; {config.model.arch} is another")
    changes = {"memory": args.memory, "bandwidth": args.bandwidth, "tflops16": args.tflops, "tflops32": args.tflops}
    gpu = replace(find_gpu(args.gpu), **{key: value for key, value in changes.items() if value is not None})
    own_run = any(key.startswith("run.") and key != "run.task" for key in config.origin)
    mode = args.mode or ("train" if own_run else "chat")
    plan = predict(config, gpu, args.nproc, args.nodes, tokens=args.tokens, llm=args.llm, mode=mode)
    print(json.dumps(plan, indent=2) if args.json else page(plan))
    return int(plan["verdict"] == "does not fit")


def page(plan: dict) -> str:
    """What `predict` returned, as text."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"span": span, "gib": lambda size: size / GIB}
    template = environment.from_string(Path(__file__).with_name("page.txt").read_text())
    return template.render(plan, efficiency=EFFICIENCY, network=NETWORK, images_per_second=IMAGES_PER_SECOND)


def span(seconds: float) -> str:
    """36,000 -> "10.0 h"; 420 -> "7.0 min"; 40 -> "40 s"; 0.0123 -> "12 ms"."""
    for unit, size, least in (("days", 86400, 48 * 3600), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "under 1 ms" if seconds else "0 s"
