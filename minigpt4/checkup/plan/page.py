"""The command `minigpt4 plan`, and the page that it prints."""

import argparse
import json
import math
from dataclasses import replace

from ... import conversation, runners, tasks  # noqa: F401  (fill the registries, so that names are checked)
from ...common.config import load_config
from ...common.errors import UserError
from ...common.gpus import EFFICIENCY, GPUS, IMAGES_PER_SECOND, NETWORK, find_gpu, roofline
from .costs import next_token_work
from .predict import (
    GIB,
    fits,
    make_setup,
    needed_memory,
    predict,
    training_time,
    verdict,
    what_fits,
)
from .setup import Setup
from .shapes import LLMS

PART_NAMES = {
    "visual_encoder": "ViT", "ln_vision": "norm", "query_tokens": "queries", "Qformer": "Q-Former",
    "llama_proj": "projection", "llama_model": "LLM",
}  # fmt: skip
TIMES = {
    "loading": "loading it beside", "gathering": "gathering layers", "all_reduce": "summing gradients",
    "optimizer": "AdamW",
}  # fmt: skip
BAR = 32  # characters for the memory of the whole device, or for what is needed where that is more
# The tables of docs/plan.md
STAGE1 = "train_configs/minigpt4_stage1_pretrain.yaml"
STAGE2 = "train_configs/minigpt4_stage2_finetune.yaml"
DEMO = "eval_configs/minigpt4_eval.yaml"
STEPS_IN_PAPER = 400  # of stage 2
DEVICES = ("3090-24g", "4090-24g", "a100-40g", "l40s-48g", "a100-80g", "h100-80g", "cpu")
CHANGES = {"model.use_grad_checkpoint": "checkpointing", "model.low_resource": "8 bit"}


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
    gpu, memory, train = plan["gpu"], plan["memory"], plan["mode"] == "train"
    fits = plan["verdict"] != "does not fit"
    where = f"{plan['devices']} x {gpu['title']}" if plan["devices"] > 1 else gpu["title"]
    words = {"fits": "It fits", "tight": "It is tight", "does not fit": "It does not fit"}[plan["verdict"]]
    lines = [f"{plan['config']}: {'training' if train else 'chat'} on {where}", ""]
    lines.append(f"{words}: {memory['total'] / GIB:.1f} of {gpu['memory']:g} GiB on each device.")
    if plan["verdict"] == "tight":
        lines.append("Without the allocator's unused blocks it fits; it may run, or stop for want of memory.")
    if not fits and not plan["ways"]:
        more = "" if train else ", or model.device_map=auto"
        lines.append("Smaller batches, use_grad_checkpoint and low_resource do not help: take a smaller LLM, or a")
        lines.append(f"larger device{more}.")
    if fits and train:
        lines.append(f"It takes {span(plan['time']['total'])} for {plan['time']['steps']:,} steps.")
    if fits and not train:
        lines.append(f"At best {plan['tokens_per_second']:.3g} tokens a second.")
    if train:
        lines.append(f"The largest batch_size_train that fits: {plan['largest_batch'] or 'none'}.")
    lines += ["", f"Model ({plan['llm']})", f"  {'':27}{'parameters':>14}{'trained':>14}{'GiB':>8}"]
    for name, part in plan["parts"].items():
        trained = f"{part['trained']:,}" if part["trained"] else "-"
        title = f"{PART_NAMES[name]} ({name})"
        lines.append(f"  {title:27}{part['parameters']:>14,}{trained:>14}{part['weights'] / GIB:>8.2f}")
    lines += ["", f"Memory of each device, of {gpu['memory']:g} GiB"]
    bars = {name: size / GIB for name, size in memory.items()} | ({} if fits else {"the device has": gpu["memory"]})
    widest = max(bars["total"], gpu["memory"])
    for name, size in bars.items():
        lines.append(f"  {name:32}{size:>7.1f} GiB  {'#' * round(BAR * size / widest)}".rstrip())
    if train and fits:
        lines += ["", *_time_lines(plan)]
    if plan["ways"]:
        lines += ["", "What fits, the least change first"]
    for way in plan["ways"]:
        options = " ".join(f"{key}={value}" for key, value in way["options"].items())
        seconds = f", {span(way['seconds'])}" if "seconds" in way else ""
        lines.append(f"  {way['memory'] / GIB:.1f} GiB{seconds}:  --options {options}")
    return "\n".join([*lines, "", "Assumed", *(f"  - {line}" for line in _assumptions(plan))])


def _time_lines(plan: dict) -> list[str]:
    time = plan["time"]
    work = f"{plan['flops'] / 1e12:.4g} TFLOP, {plan['bytes'] / 1e9:.4g} GB moved"
    lines = [
        f"One step, {plan['samples']} samples: {span(time['step'])}",
        f"  {time['batches']} x batch of {plan['batch']:<6} {span(time['compute']):>8}   {work}",
    ]
    remedies = {"loading": ": more run.num_workers", "gathering": ""}
    for key, title in TIMES.items():
        if time[key] or key != "gathering":  # FSDP's
            slow = key in remedies and time[key] > time["compute"]
            lines.append(
                f"  {title:21}{span(time[key]):>8}" + (f"  <- slower than the device{remedies[key]}" if slow else "")
            )
    return lines


def _assumptions(plan: dict) -> list[str]:
    gpu, train, features = plan["gpu"], plan["mode"] == "train", plan.get("features")
    tflops = f"{gpu['tflops16']:g} TFLOP/s in 16 bit, {gpu['tflops32']:g} in fp32, {gpu['bandwidth']:g} GB/s"
    speed = NETWORK if plan["nodes"] > 1 else gpu["link"]
    lines = {
        f"{plan.get('tokens')} text tokens a row, padding included (--tokens)": train,
        f"one chat that grows to {plan.get('context')} tokens before the last answer": not train,
        f"{gpu['title']}: {tflops} ({gpu['source']}); {EFFICIENCY:.0%} of these peaks are reached": True,
        f"gradients, and the layers that FSDP gathers, move at {speed:g} GB/s, one direction":
            train and plan["devices"] > 1,
        "features (build_info.features) stand for the images: the ViT does not run, loading takes no time":
            features == "all",
        f"a loader process makes {IMAGES_PER_SECOND} images a second, while the device computes":
            train and features != "all",
        "every batch is of images, though some datasets have features (build_info.features)": features == "some",
        "converting between the LLM's low-bit weights and 16 bit costs time that is not counted": plan["bits"] < 16,
    }  # fmt: skip
    return [line for line, holds in lines.items() if holds]


# -- the tables of docs/plan.md --------------------------------------------------------------------------------------


def tables() -> str:
    """Return everything between the marks of docs/plan.md."""
    lines = ["### The original, as it ran", *paper_table()]
    for llm in reversed(LLMS):
        head = ["", "stage 1 on 4", "stage 2 on 1", "demo", "demo in 8 bit"]
        lines += ["", f"### {llm}, this implementation", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        stage1, stage2, demo = (make_setup(path, llm, GPUS["cpu"]) for path in (STAGE1, STAGE2, DEMO))
        for gpu in map(GPUS.get, DEVICES):
            first, second = replace(stage1, gpu=gpu, nproc=4), replace(stage2, gpu=gpu)
            cells = [gpu.title, training_cell(first), training_cell(second)]
            cells += [chat_cell(replace(demo, gpu=gpu).changed({"model.low_resource": low})) for low in (False, True)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paper_table() -> list[str]:
    """The reported figures, and ours for the original's code. Reported GB are read as 10^9 bytes."""
    a100 = GPUS["a100-80g"]
    first = make_setup(STAGE1, "vicuna-13b", a100, 4, original=True)
    second = replace(first, config=make_setup(STAGE2, "vicuna-13b", a100).config, nproc=1)
    rows = [
        ("stage 1: 20,000 steps of 256 on 4 A100-80GB", 10, training_time(first)["total"] / 3600, "h"),
        (f"stage 2: {STEPS_IN_PAPER} steps of 12 on 1 A100-80GB, as the paper says", 7,
         STEPS_IN_PAPER * training_time(second)["step"] / 60, "min"),
        ("memory of stage 1, batch 64", 70, needed_memory(first, "train")["total"] / 1e9, "GB"),
    ]  # fmt: skip
    for llm, reported in (("vicuna-13b", 23), ("vicuna-7b", 11.5)):
        demo = needed_memory(make_setup(DEMO, llm, a100, original=True), "chat")
        rows.append((f"memory of the demo in 8 bit, {llm}", reported, demo["total"] / 1e9, "GB"))
    lines = ["| | reported | planned | planned / reported |", "|---|---|---|---|"]
    for what, reported, planned, unit in rows:
        lines.append(f"| {what} | {reported:g} {unit} | {planned:.1f} {unit} | {planned / reported:.2f} |")
    return lines


def training_cell(setup: Setup) -> str:
    """Batch, memory and time of the config, or of the least change that fits."""
    options, fitting = ({}, setup) if fits(setup) else next(what_fits(setup), ({}, None))
    if fitting is None:
        return "no"
    times = f" x {fitting.config.run.accum_grad_iters}" if fitting.config.run.accum_grad_iters > 1 else ""
    how = ", ".join([f"batch {fitting.batch}{times}", *(text for key, text in CHANGES.items() if key in options)])
    memory = needed_memory(fitting, "train")["total"] / GIB
    return f"{how}: {memory:.1f} GiB, {span(training_time(fitting)['total'])}"


def chat_cell(setup: Setup) -> str:
    """Memory of the longest chat, and its tokens a second at best."""
    memory = needed_memory(setup, "chat")
    size, word = f"{memory['total'] / GIB:.1f} GiB", verdict(memory, setup.gpu)
    if word == "does not fit":
        return f"no: {size}"
    rate = 1 / roofline(next_token_work(setup), setup.gpu)
    return f"{size}{', tight' * (word == 'tight')}; {rate:.{0 if rate >= 10 else 1}f} tokens/s"


def span(seconds: float) -> str:
    """36,000 -> "10.0 h"; 420 -> "7.0 min"; 40 -> "40 s"; 0.0123 -> "12 ms"."""
    for unit, size, least in (("days", 86400, 48 * 3600), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "under 1 ms" if seconds else "0 s"
