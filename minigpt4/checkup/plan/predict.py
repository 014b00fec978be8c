"""What a config needs on its devices, in plain numbers: memory, time, whether it fits, and what would make it fit."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from ...common.config import load_config
from ...common.gpus import CUDA_CONTEXT, IMAGES_PER_SECOND, PROCESS, Gpu, all_gather, all_reduce, find_gpu, roofline
from ...common.schema import Config
from .costs import activations, chat_activations, first_token_work, longest_context, next_token_work, training_work
from .setup import Setup
from .shapes import find_llm, read_shapes

GIB = 2**30
LARGEST_BATCH = 4096  # no larger one is tried
SPARE = "the allocator's unused blocks"
SPARE_TRAINING, SPARE_CHAT = 0.07, 0.5  # of the activations; of keys and values, which grow into ever larger blocks


def make_setup(path: str, llm: str | None, gpu: Gpu, nproc: int = 1, options: Sequence[str] = (), **more) -> Setup:
    """The setup of a config file; `more` are fields of Setup."""
    config = load_config(path, options, mode="show")
    return Setup(config, read_shapes(config.model, find_llm(config, llm)[0]), gpu, nproc, **more)


def predict(
    config: Config, gpu: Gpu | str, nproc: int = 1, nodes: int = 1, *,
    tokens: int | None = None, llm: str | None = None, mode: str = "train",
) -> dict:  # fmt: skip
    """Everything that the page says, in plain numbers; what `minigpt4 plan --json` prints.

    Args:
        config: of `load_config`. Weights and data need not be there.
        gpu: a device, or its name in common/gpus.py.
        nproc: devices of each of `nodes`.
        tokens, llm: as --tokens and --llm.
        mode: train or chat.
    Returns:
        memory {purpose: bytes} and "total", verdict (fits, tight, does not fit), parts {name: parameters, trained,
        weights in bytes}, ways to fit if it does not. Of training also batch, samples of an optimizer step, flops and
        bytes (moved) of a batch, time (see `training_time`), largest_batch; of a chat context (tokens), first_token
        (seconds), tokens_per_second.
    """
    sizes, source = find_llm(config, llm)
    device = find_gpu(gpu) if isinstance(gpu, str) else gpu
    setup = Setup(config, read_shapes(config.model, sizes), device, nproc, nodes, tokens)
    memory = training_memory(setup) if mode == "train" else chat_memory(setup)
    parts = {name: asdict(part) | {"weights": setup.weights(name)} for name, part in setup.shapes.parts.items()}
    plan = {
        "config": config.path, "mode": mode, "gpu": asdict(device), "nproc": nproc, "nodes": nodes,
        "devices": setup.devices, "llm": source,
        "parts": parts, "bits": setup.bits, "memory": memory, "verdict": verdict(memory, device), "ways": [],
    }  # fmt: skip
    if mode == "chat":
        if plan["verdict"] != "fits":
            plan["ways"] = [
                {"options": {"model.low_resource": s.config.model.low_resource}, "memory": chat_memory(s)["total"]}
                for s in chats_that_fit(setup)
            ]
        return plan | {
            "context": longest_context(setup)[0],
            "first_token": roofline(first_token_work(setup), device),
            "tokens_per_second": 1 / roofline(next_token_work(setup), device),
        }
    if plan["verdict"] != "fits":
        plan["ways"] = [_way(keys, fitting) for keys, fitting in what_fits(setup)]
    run, work = config.run, [*training_work(setup)]
    return plan | {
        "features": setup.features,
        "tokens": setup.text_tokens,
        "batch": run.batch_size_train,
        "samples": run.batch_size_train * run.accum_grad_iters * setup.devices,
        "flops": sum(flops for flops, _, _ in work),
        "bytes": sum(moved for _, _, moved in work),
        "time": training_time(setup),
        "largest_batch": largest_batch(setup),
    }


def _way(keys: dict, setup: Setup) -> dict:
    run = setup.config.run
    options = {"run.parallel" if key == "parallel" else f"model.{key}": value for key, value in keys.items()}
    options |= {"run.batch_size_train": run.batch_size_train, "run.accum_grad_iters": run.accum_grad_iters}
    return {
        "options": options,
        "memory": training_memory(setup)["total"],
        "seconds": training_time(setup)["total"],
    }


def training_memory(setup: Setup) -> dict[str, int]:
    """Bytes of each device at the peak of a training step, by purpose, and "total"."""
    weights, layers, trained = sum(map(setup.weights, setup.shapes.parts)), setup.layer_weights, _trained(setup)
    lines = {"weights": weights}
    if setup.sharded:  # a device gathers the next layer while it computes one
        lines["weights"] += -(-layers // setup.devices) - layers
        lines["two layers, gathered"] = 2 * layers // setup.shapes.llm.layers
    # In fp32: gradient, AdamW's two moments, and DDP's bucket of gradients.
    lines["gradients and AdamW"] = (4 + 8 + (4 if setup.devices > 1 else 0)) * trained
    kept, beside = activations(setup)
    lines |= {"kept for backward": kept, "workspace at the peak": beside}
    return _with_context(setup, lines, SPARE_TRAINING * (kept + beside))


def chat_memory(setup: Setup) -> dict[str, int]:
    """Bytes of a device at the peak of the longest chat, by purpose, and "total"."""
    cache, workspace = chat_activations(setup)
    weights = sum(map(setup.weights, setup.shapes.parts))
    lines = {"weights": weights, "keys and values": cache, "workspace at the peak": workspace}
    return _with_context(setup, lines, SPARE_CHAT * cache)


def _with_context(setup: Setup, lines: dict[str, int], spare: float) -> dict[str, int]:
    if setup.on_cpu:
        lines["Python and libraries"] = int(PROCESS * GIB)
    else:
        lines |= {SPARE: int(spare), "CUDA context": int(CUDA_CONTEXT * GIB)}
    return lines | {"total": sum(lines.values())}


def _trained(setup: Setup) -> int:
    return sum(part.trained for part in setup.shapes.parts.values())


def verdict(memory: dict[str, int], gpu: Gpu) -> str:
    """fits; tight: only without the allocator's unused blocks, which it frees before it fails; does not fit."""
    room, total = gpu.memory * GIB, memory["total"]
    return "fits" if total <= room else "tight" if total - memory.get(SPARE, 0) <= room else "does not fit"


def training_time(setup: Setup) -> dict[str, float]:
    """Seconds: compute, loading and gathering (FSDP) of a batch, which run beside each other; all_reduce, optimizer and
    `step` of an optimizer step, which has `batches`; `total` of all `steps`."""
    run, gpu, trained = setup.config.run, setup.gpu, _trained(setup)
    images = 0 if setup.features == "all" else run.batch_size_train  # features are read as they are in their file
    time = {
        "compute": roofline(training_work(setup), gpu),
        "loading": images / (IMAGES_PER_SECOND * max(run.num_workers, 1)),
        # In forward, and again in backward.
        "gathering": all_gather(2 * setup.layer_weights if setup.sharded else 0, gpu, setup.nproc, setup.nodes),
        "all_reduce": all_reduce(4 * trained, gpu, setup.nproc, setup.nodes),
        "optimizer": roofline([(0, 4, 28 * trained)], gpu),  # reads 4 numbers for each weight, writes 3
        "batches": run.accum_grad_iters,
        "steps": run.max_epoch * run.iters_per_epoch,
    }
    batch = max(time["compute"], time["loading"], time["gathering"])
    step = time["batches"] * batch + time["all_reduce"] + time["optimizer"]
    return time | {"step": step, "total": time["steps"] * step}


def fits_training(setup: Setup) -> bool:
    return verdict(training_memory(setup), setup.gpu) == "fits"


def largest_batch(setup: Setup) -> int:
    """The largest batch_size_train that fits; 0 when none does."""
    return bisect.bisect(range(1, LARGEST_BATCH + 1), False, key=lambda batch: not fits_training(setup.changed(batch)))


def what_fits(setup: Setup) -> Iterator[tuple[dict, Setup]]:
    """Ways to train that fit, the least change first: the keys that change, and the whole. The batch divides
    an optimizer step's samples, and accum_grad_iters makes up for it, so that the training is the same."""
    model, run = setup.config.model, setup.config.run
    whole = run.batch_size_train * run.accum_grad_iters
    slower, smaller, sharded = {"use_grad_checkpoint": True}, {"low_resource": True}, {"parallel": "fsdp"}
    ways = [{}, slower] if setup.sharded else [{}, slower, smaller, slower | smaller]
    if setup.devices > 1 and not (model.low_resource or model.lora):  # FSDP shards an LLM that is frozen, in 16 bit
        ways += [sharded, slower | sharded]
    now = {**vars(model), "parallel": "fsdp" if setup.sharded else None}
    for way in ways:
        if not any(now[key] for key in way):  # else it is so already
            changed = setup.changed(**way)
            batch = next((b for b in range(run.batch_size_train, 0, -1)
                          if whole % b == 0 and fits_training(changed.changed(b))), None)  # fmt: skip
            if batch:
                yield way, changed.changed(batch)


def chats_that_fit(setup: Setup) -> list[Setup]:
    """The chat with other bits of the LLM's weights, the most bits first."""
    bits = [low for low in (False, True, "4bit") if low != setup.config.model.low_resource]
    changed = [setup.changed(low_resource=low) for low in bits]
    return [s for s in changed if verdict(chat_memory(s), s.gpu) == "fits"]
