"""What a config needs on its devices, in plain numbers: memory, time, whether it fits, and what would make it fit."""

import bisect
from collections.abc import Iterator
from dataclasses import asdict

from ...common.gpus import CUDA_CONTEXT, IMAGES_PER_SECOND, PROCESS, Gpu, all_gather, all_reduce, find_gpu, roofline
from ...common.schema import Config
from .costs import Setup, activations, chat_activations, longest_context, next_token_work, training_work
from .shapes import Shapes, find_llm

GIB = 2**30
LARGEST_BATCH = 4096  # no larger one is tried
SPARE = "the allocator's unused blocks"
SPARE_TRAINING, SPARE_CHAT = 0.07, 0.5  # of the activations; of keys and values, which grow into ever larger blocks


def predict(
    config: Config, gpu: Gpu | str, nproc: int = 1, nodes: int = 1, *,
    tokens: int | None = None, llm: str | None = None, mode: str = "train",
) -> dict:  # fmt: skip
    """Everything that the page says, in plain numbers; what `minigpt4 plan --json` prints. The config's weights and
    data need not be there.

    Args:
        gpu: a device, or its name in common/gpus.py.
        nproc: devices of each of `nodes`.
        tokens, llm, mode: as --tokens, --llm, --mode.
    Returns:
        memory: {purpose: bytes} with "total"; verdict: fits, tight or does not fit; parts: {name: {parameters, trained,
        weights in bytes}}; ways to fit if it does not. Of training also the flops and bytes (moved) of a batch, the
        samples of an optimizer step, and time, see `training_time`. Of a chat the tokens of its context.
    """
    sizes, source = find_llm(config, llm)
    device = find_gpu(gpu) if isinstance(gpu, str) else gpu
    setup = Setup(config, Shapes(config.model, sizes), device, nproc, nodes, tokens)
    memory = needed_memory(setup, mode)
    plan = {
        "config": config.path, "mode": mode, "gpu": asdict(device), "nproc": nproc, "nodes": nodes,
        "devices": setup.devices, "llm": source, "bits": setup.bits,
        "parts": {name: asdict(part) | {"weights": setup.weights(name)} for name, part in setup.shapes.parts.items()},
        "memory": memory, "verdict": verdict(memory, device), "ways": [],
    }  # fmt: skip
    if plan["verdict"] != "fits":
        for options, fitting in what_fits(setup, mode):
            way = {"options": options, "memory": needed_memory(fitting, mode)["total"]}
            plan["ways"].append(way | ({"seconds": training_time(fitting)["total"]} if mode == "train" else {}))
    if mode == "chat":
        rate = 1 / roofline(next_token_work(setup), device)
        return plan | {"context": longest_context(setup)[0], "tokens_per_second": rate}
    flops, _, moved = map(sum, zip(*training_work(setup), strict=True))
    return plan | {
        "features": setup.features, "tokens": setup.text_tokens, "batch": setup.batch,
        "samples": setup.batch * config.run.accum_grad_iters * setup.devices, "flops": flops, "bytes": moved,
        "time": training_time(setup), "largest_batch": largest_batch(setup),
    }  # fmt: skip


def needed_memory(setup: Setup, mode: str) -> dict[str, int]:
    """Bytes of each device by purpose, and "total": at the peak of a training step, or of the longest chat."""
    lines = {"weights": sum(map(setup.weights, setup.shapes.parts))}
    if mode == "chat":
        lines["keys and values"], lines["workspace at the peak"] = chat_activations(setup)
        spare = SPARE_CHAT * lines["keys and values"]
    else:
        if setup.sharded:  # a device gathers the next layer while it computes one
            lines["weights"] += -(-setup.layer_weights // setup.devices) - setup.layer_weights
            lines["two layers, gathered"] = 2 * setup.layer_weights // setup.shapes.llm.layers
        # In fp32: gradient, AdamW's two moments, and DDP's bucket of gradients.
        lines["gradients and AdamW"] = (4 + 8 + (4 if setup.devices > 1 else 0)) * setup.shapes.trained
        lines["kept for backward"], lines["workspace at the peak"] = activations(setup)
        spare = SPARE_TRAINING * (lines["kept for backward"] + lines["workspace at the peak"])
    if setup.on_cpu:
        lines["Python and libraries"] = int(PROCESS * GIB)
    else:
        lines |= {SPARE: int(spare), "CUDA context": int(CUDA_CONTEXT * GIB)}
    return lines | {"total": sum(lines.values())}


def verdict(memory: dict[str, int], gpu: Gpu) -> str:
    """fits; tight: only without the allocator's unused blocks, which it frees before it fails; does not fit."""
    room, total = gpu.memory * GIB, memory["total"]
    return "fits" if total <= room else "tight" if total - memory.get(SPARE, 0) <= room else "does not fit"


def training_time(setup: Setup) -> dict[str, float]:
    """Seconds: compute, loading and gathering (FSDP) of a batch, which run beside each other; all_reduce, optimizer and
    `step` of an optimizer step, which has `batches`; `total` of all `steps`."""
    run, gpu, trained = setup.config.run, setup.gpu, setup.shapes.trained
    images = 0 if setup.features else setup.batch  # features are read as they are in their file
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


def fits(setup: Setup, mode: str = "train") -> bool:
    return verdict(needed_memory(setup, mode), setup.gpu) == "fits"


def largest_batch(setup: Setup) -> int:
    """The largest batch_size_train that fits; 0 when none does."""
    batches = range(1, LARGEST_BATCH + 1)
    return bisect.bisect(batches, False, key=lambda batch: not fits(setup.changed({"run.batch_size_train": batch})))


def what_fits(setup: Setup, mode: str = "train") -> Iterator[tuple[dict, Setup]]:
    """Yield options that make it fit, the smallest change first, and the setup with them. A smaller batch divides an
    optimizer step's samples, and accum_grad_iters makes up for it, so that the training is the same."""
    model, run = setup.config.model, setup.config.run
    if mode == "chat":  # the most bits first
        changes = [{"model.low_resource": low} for low in (False, True, "4bit") if low != model.low_resource]
    else:
        changes = [{}] if model.use_grad_checkpoint else [{}, {"model.use_grad_checkpoint": True}]
        if not (setup.sharded or model.low_resource):  # FSDP shards an LLM that is frozen, in 16 bit
            others = [{"model.low_resource": True}]
            if setup.devices > 1 and not model.lora:
                others.append({"run.parallel": "fsdp"})
            changes += [change | other for other in others for change in changes]
    whole = setup.batch * run.accum_grad_iters
    batches = [setup.with_batch(batch) for batch in range(setup.batch, 0, -1) if whole % batch == 0]
    for change in changes:
        for batch in batches if mode == "train" else [{}]:
            if fits(changed := setup.changed(change | batch), mode):
                yield change | batch, changed
                break
