"""`minigpt4 plan --cfg-path X --gpu a100-80g --nproc 4`: will it fit, and how long will it take?

Counted from the real modules on the meta device; no weights, data or GPU are needed. docs/plan.md explains the terms.
"""

import argparse
import json
import math
from dataclasses import asdict, replace

from ...common.config import load_config
from ...common.errors import ConfigError, UserError
from ...common.gpus import CUDA_CONTEXT, EFFICIENCY, GPUS, IMAGES_PER_SECOND, NETWORK, Gpu, find_gpu, roofline
from .count import FIRST_CONTEXT, count_chat, count_step, find_llm
from .predict import (
    GIB,
    Memory,
    Setup,
    chat_memory,
    chat_that_fits,
    largest_batch,
    training_memory,
    training_time,
    what_fits,
)

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
        from .table import tables

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
    llm, source = find_llm(config, args.llm)
    setup = Setup(config, llm, _gpu(args), args.nproc, args.nodes, args.tokens)
    own_run = any(key.startswith("run.") and key != "run.task" for key in config.origin)
    mode = args.mode or ("train" if own_run else "chat")
    if mode == "train" and not any(part.trained for part in setup.parts):
        raise ConfigError(f"{config.path}: nothing to train: every part of the model is frozen; or ask for --mode chat")
    plan = plan_training(setup) if mode == "train" else plan_chat(setup)
    plan["llm"] = source
    print(json.dumps(plan, indent=2) if args.json else page(plan))
    return int(plan["verdict"] == "does not fit")


def _gpu(args: argparse.Namespace) -> Gpu:
    """The device of the table, with what was said otherwise."""
    changes = {"memory": args.memory, "bandwidth": args.bandwidth, "tflops16": args.tflops, "tflops32": args.tflops}
    return replace(find_gpu(args.gpu), **{k: v for k, v in changes.items() if v is not None})


# -- plans ----------------------------------------------------------------------------------------------------------


def plan_training(setup: Setup) -> dict:
    """Everything the page says of a training run, in bytes and seconds."""
    run, load = setup.config.run, setup.load
    memory, time = training_memory(setup), training_time(setup)
    step = count_step(load, run.batch_size_train)
    ways = what_fits(setup) if memory.verdict != "fits" else []
    return _common(setup, "train", memory) | {
        "batch": run.batch_size_train,
        "samples": run.batch_size_train * run.accum_grad_iters * setup.nproc * setup.nodes,
        "flops": sum(flops * n for (flops, _, _), n in step.work.items()),
        "bytes": sum(moved * n for (_, _, moved), n in step.work.items()),
        "time": asdict(time) | {"step": time.step, "total": time.total},
        "largest_batch": largest_batch(setup),
        "ways": [_way(keys, fitting) for keys, fitting in ways],
        "assumptions": _assumptions(setup, "train", f"{load.tokens} text tokens a row, padding included (--tokens)"),
    }


def _way(keys: dict, setup: Setup) -> dict:
    run = setup.config.run
    written = {"run.parallel" if k == "parallel" else f"model.{k}": v for k, v in keys.items()}
    written |= {"run.batch_size_train": run.batch_size_train, "run.accum_grad_iters": run.accum_grad_iters}
    return {"options": written, "memory": training_memory(setup).total, "seconds": training_time(setup).total}


def plan_chat(setup: Setup) -> dict:
    """Everything the page says of a chat, in bytes and seconds."""
    memory, chat = chat_memory(setup), count_chat(setup.load)
    others = chat_that_fits(setup) if memory.verdict != "fits" else []
    return _common(setup, "chat", memory) | {
        "context": chat.contexts[-1],
        "first_token": roofline(chat.first, setup.gpu),
        "tokens_per_second": 1 / roofline(chat.token, setup.gpu),
        "ways": [{"options": {f"model.{k}": v for k, v in keys.items()}, "memory": chat_memory(s).total}
                 for keys, s in others],
        "assumptions": _assumptions(
            setup,
            "chat",
            f"one chat, growing to {chat.contexts[-1]} tokens before the last answer and read anew each turn; "
            f"{FIRST_CONTEXT} tokens before the first",
        ),
    }  # fmt: skip


def _common(setup: Setup, mode: str, memory: Memory) -> dict:
    return {
        "config": setup.config.path,
        "mode": mode,
        "gpu": asdict(setup.gpu),
        "nproc": setup.nproc,
        "nodes": setup.nodes,
        "parts": [asdict(part) for part in setup.parts],
        "bits": setup.load.bits,
        "memory": memory.lines | {"total": memory.total},
        "verdict": memory.verdict,
    }


def _assumptions(setup: Setup, mode: str, tokens: str) -> list[str]:
    gpu = setup.gpu
    lines = [
        tokens,
        f"{gpu.title}: {gpu.tflops16:g} TFLOP/s in 16 bit, {gpu.tflops32:g} in fp32, {gpu.bandwidth:g} GB/s "
        f"({gpu.source})",
        f"every operation takes its FLOPs or its bytes, whichever is slower, at {EFFICIENCY:.0%} of these peaks",
    ]
    if gpu.kind == "cuda":
        lines.append(f"CUDA context {CUDA_CONTEXT} GiB; attention by a fused kernel")
    if setup.devices > 1:
        speed = NETWORK if setup.nodes > 1 else gpu.link
        lines.append(f"gradients are summed over {speed:g} GB/s, one direction")
        if mode == "train" and setup.parted:
            lines.append("FSDP gathers the LLM's layers over the same, twice a batch, while the device computes")
    if mode == "train" and setup.load.features:
        lines.append("features (build_info.features) stand for the images: the ViT does not run, loading takes no time")
    elif mode == "train":
        lines.append(f"a loader process makes {IMAGES_PER_SECOND} images a second, while the device computes")
        if any(dataset.build_info.features for dataset in setup.config.datasets.values()):
            lines.append("every batch is of images, though some datasets have features (build_info.features)")
    if setup.load.bits < 16:
        lines.append("converting between the LLM's low-bit weights and 16 bit costs time that is not counted")
    return lines


# -- the page -------------------------------------------------------------------------------------------------------


def page(plan: dict) -> str:
    """The plan as text."""
    gpu, memory = plan["gpu"], plan["memory"]
    devices = plan["nproc"] * plan["nodes"]
    where = f"{devices} x {gpu['title']}" if devices > 1 else gpu["title"]
    what = "training" if plan["mode"] == "train" else "chat"
    lines = [f"{plan['config']}: {what} on {where}", "", *_headline(plan), ""]
    lines += [f"Model ({plan['llm']})", f"  {'':27}{'parameters':>14}{'trained':>14}{'GiB':>8}"]
    for part in plan["parts"]:
        name = f"{PART_NAMES[part['name']]} ({part['name']})" if part["name"] in PART_NAMES else part["name"]
        trained = f"{part['trained']:,}" if part["trained"] else "-"
        lines.append(f"  {name:27}{part['parameters']:>14,}{trained:>14}{part['weights'] / GIB:>8.2f}")
    lines += ["", f"Memory of each device, of {gpu['memory']:g} GiB"]
    widest = max(memory["total"] / GIB, gpu["memory"])
    for name, size in memory.items():
        bar = "#" * round(BAR * size / GIB / widest)
        lines.append(f"  {name:32}{size / GIB:>7.1f} GiB  {bar}".rstrip())
    if plan["verdict"] == "does not fit":
        lines.append(f"  {'the device has':32}{gpu['memory']:>7.1f} GiB  {'#' * round(BAR * gpu['memory'] / widest)}")
    elif plan["mode"] == "train":
        lines += ["", *_time_lines(plan)]
    if plan["ways"]:
        lines += ["", "What fits, the least change first"]
        for way in plan["ways"]:
            options = " ".join(f"{k}={v}" for k, v in way["options"].items())
            seconds = f", {span(way['seconds'])}" if "seconds" in way else ""
            lines.append(f"  {way['memory'] / GIB:.1f} GiB{seconds}:  --options {options}")
    lines += ["", "Assumed", *(f"  - {line}" for line in plan["assumptions"])]
    return "\n".join(lines)


def _headline(plan: dict) -> list[str]:
    total, room = plan["memory"]["total"] / GIB, plan["gpu"]["memory"]
    words = {"fits": "It fits", "tight": "It is tight", "does not fit": "It does not fit"}[plan["verdict"]]
    lines = [f"{words}: {total:.1f} of {room:g} GiB on each device."]
    if plan["verdict"] == "tight":
        lines.append("Without the allocator's unused blocks it fits; it may run, or stop for want of memory.")
    if plan["verdict"] == "does not fit" and not plan["ways"]:
        more = ", or model.device_map=auto" if plan["mode"] == "chat" else ""
        lines.append("Smaller batches, use_grad_checkpoint and low_resource do not help: take a smaller LLM, or a")
        lines.append(f"larger device{more}.")
    fits = plan["verdict"] != "does not fit"
    if plan["mode"] == "chat":
        first = span(plan["first_token"])
        more = f"At best {plan['tokens_per_second']:.3g} tokens a second; the first after {first}."
        return [*lines, more] if fits else lines
    if fits:
        lines.append(f"It takes {span(plan['time']['total'])} for {plan['time']['steps']:,} steps.")
    lines.append(f"The largest batch_size_train that fits: {plan['largest_batch'] or 'none'}.")
    return lines


def _time_lines(plan: dict) -> list[str]:
    time = plan["time"]
    bound = "" if time["compute"] >= time["loading"] else "  <- slower than the device: more run.num_workers"
    slow_link = "" if time["compute"] >= time["gathering"] else "  <- slower than the device"
    gathering = [f"  gathering layers     {span(time['gathering']):>8}{slow_link}"] if time["gathering"] else []
    return [
        f"One step, {plan['samples']} samples: {span(time['step'])}",
        f"  {time['batches']} x batch of {plan['batch']:<6} {span(time['compute']):>8}   "
        f"{plan['flops'] / 1e12:.4g} TFLOP, {plan['bytes'] / 1e9:.4g} GB moved",
        f"  loading it beside    {span(time['loading']):>8}{bound}",
        *gathering,
        f"  summing gradients    {span(time['all_reduce']):>8}",
        f"  AdamW                {span(time['optimizer']):>8}",
    ]


def span(seconds: float) -> str:
    """36,000 -> "10.0 h"; 420 -> "7.0 min"; 40 -> "40 s"; 0.0123 -> "12 ms"."""
    for unit, size in (("days", 48 * 3600), ("h", 5400), ("min", 90)):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "under 1 ms" if seconds else "0 s"
