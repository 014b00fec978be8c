"""The command `minigpt4 plan`, and the page that it prints."""

import argparse
import json
import math
from dataclasses import replace

from ...common.config import load_config
from ...common.errors import UserError
from ...common.gpus import EFFICIENCY, GPUS, IMAGES_PER_SECOND, NETWORK, find_gpu
from .predict import GIB, predict
from .table import span, tables

PART_NAMES = {
    "visual_encoder": "ViT", "ln_vision": "norm", "query_tokens": "queries", "Qformer": "Q-Former",
    "llama_proj": "projection", "llama_model": "LLM",
}  # fmt: skip
BAR = 32  # characters for the memory of the whole device, or for what is needed where that is more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", help="the YAML config; its weights and data need not be there")
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
    parser.add_argument("--table", action="store_true", help="the tables of docs/plan.md instead, as Markdown")


def run(args: argparse.Namespace) -> int:
    """Print the plan; the exit code is 0 when it fits (or is tight), 1 when it does not."""
    from ... import conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)

    if args.table:
        print(tables())
        return 0
    if not args.cfg_path:
        raise UserError("--cfg-path: name a config, or ask for --table")
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
    gpu, memory = plan["gpu"], plan["memory"]
    where = f"{plan['devices']} x {gpu['title']}" if plan["devices"] > 1 else gpu["title"]
    what = "training" if plan["mode"] == "train" else "chat"
    lines = [f"{plan['config']}: {what} on {where}", "", *_headline(plan), ""]
    lines += [f"Model ({plan['llm']})", f"  {'':27}{'parameters':>14}{'trained':>14}{'GiB':>8}"]
    for name, part in plan["parts"].items():
        trained = f"{part['trained']:,}" if part["trained"] else "-"
        title = f"{PART_NAMES[name]} ({name})"
        lines.append(f"  {title:27}{part['parameters']:>14,}{trained:>14}{part['weights'] / GIB:>8.2f}")
    lines += ["", f"Memory of each device, of {gpu['memory']:g} GiB"]
    bars = {name: size / GIB for name, size in memory.items()}
    if plan["verdict"] == "does not fit":
        bars["the device has"] = gpu["memory"]
    widest = max(bars["total"], gpu["memory"])
    for name, size in bars.items():
        lines.append(f"  {name:32}{size:>7.1f} GiB  {'#' * round(BAR * size / widest)}".rstrip())
    if plan["mode"] == "train" and plan["verdict"] != "does not fit":
        lines += ["", *_time_lines(plan)]
    if plan["ways"]:
        lines += ["", "What fits, the least change first"]
    for way in plan["ways"]:
        options = " ".join(f"{key}={value}" for key, value in way["options"].items())
        seconds = f", {span(way['seconds'])}" if "seconds" in way else ""
        lines.append(f"  {way['memory'] / GIB:.1f} GiB{seconds}:  --options {options}")
    return "\n".join([*lines, "", "Assumed", *(f"  - {line}" for line in _assumptions(plan))])


def _headline(plan: dict) -> list[str]:
    words = {"fits": "It fits", "tight": "It is tight", "does not fit": "It does not fit"}[plan["verdict"]]
    lines = [f"{words}: {plan['memory']['total'] / GIB:.1f} of {plan['gpu']['memory']:g} GiB on each device."]
    if plan["verdict"] == "tight":
        lines.append("Without the allocator's unused blocks it fits; it may run, or stop for want of memory.")
    if plan["verdict"] == "does not fit" and not plan["ways"]:
        more = ", or model.device_map=auto" if plan["mode"] == "chat" else ""
        lines.append("Smaller batches, use_grad_checkpoint and low_resource do not help: take a smaller LLM, or a")
        lines.append(f"larger device{more}.")
    fits = plan["verdict"] != "does not fit"
    if plan["mode"] == "chat":
        return [*lines, f"At best {plan['tokens_per_second']:.3g} tokens a second."] if fits else lines
    if fits:
        lines.append(f"It takes {span(plan['time']['total'])} for {plan['time']['steps']:,} steps.")
    return [*lines, f"The largest batch_size_train that fits: {plan['largest_batch'] or 'none'}."]


def _time_lines(plan: dict) -> list[str]:
    time = plan["time"]
    work = f"{plan['flops'] / 1e12:.4g} TFLOP, {plan['bytes'] / 1e9:.4g} GB moved"
    slower = {"loading": ": more run.num_workers", "gathering": ""}
    notes = {k: f"  <- slower than the device{v}" if time[k] > time["compute"] else "" for k, v in slower.items()}
    gathering = f"  gathering layers     {span(time['gathering']):>8}{notes['gathering']}"
    return [
        f"One step, {plan['samples']} samples: {span(time['step'])}",
        f"  {time['batches']} x batch of {plan['batch']:<6} {span(time['compute']):>8}   {work}",
        f"  loading it beside    {span(time['loading']):>8}{notes['loading']}",
        *([gathering] if time["gathering"] else []),
        f"  summing gradients    {span(time['all_reduce']):>8}",
        f"  AdamW                {span(time['optimizer']):>8}",
    ]


def _assumptions(plan: dict) -> list[str]:
    gpu, train = plan["gpu"], plan["mode"] == "train"
    lines = [
        f"{plan['tokens']} text tokens a row, padding included (--tokens)" if train else
        f"one chat that grows to {plan['context']} tokens before the last answer",
        f"{gpu['title']}: {gpu['tflops16']:g} TFLOP/s in 16 bit, {gpu['tflops32']:g} in fp32, "
        f"{gpu['bandwidth']:g} GB/s ({gpu['source']}); {EFFICIENCY:.0%} of these peaks are reached",
    ]  # fmt: skip
    if plan["devices"] > 1 and train:
        speed = NETWORK if plan["nodes"] > 1 else gpu["link"]
        lines.append(f"gradients, and the layers that FSDP gathers, move at {speed:g} GB/s, one direction")
    if train and plan["features"] == "all":
        lines.append("features (build_info.features) stand for the images: the ViT does not run, loading takes no time")
    elif train:
        lines.append(f"a loader process makes {IMAGES_PER_SECOND} images a second, while the device computes")
    if train and plan["features"] == "some":
        lines.append("every batch is of images, though some datasets have features (build_info.features)")
    if plan["bits"] < 16:
        lines.append("converting between the LLM's low-bit weights and 16 bit costs time that is not counted")
    return lines
