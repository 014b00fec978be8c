"""The tables of docs/plan.md: what the original reported beside what is planned for it, and common devices."""

from collections.abc import Iterable

from ...common.config import load_config
from ...common.gpus import GPUS, Gpu, roofline
from .count import LLMS, count_chat, find_llm
from .predict import GIB, Setup, chat_memory, training_memory, training_time, weights_fit, what_fits

STAGE1 = "train_configs/minigpt4_stage1_pretrain.yaml"
STAGE2 = "train_configs/minigpt4_stage2_finetune.yaml"
DEMO = "eval_configs/minigpt4_eval.yaml"
STEPS_IN_PAPER = 400  # of stage 2
DEVICES = ("3090-24g", "4090-24g", "a100-40g", "l40s-48g", "a100-80g", "h100-80g", "cpu")
CHANGES = {"use_grad_checkpoint": "checkpointing", "low_resource": "8 bit"}


def tables() -> str:
    """Everything that stands between the marks of docs/plan.md."""
    parts = ["### The original, as it ran", *paper_table()]
    for name in reversed(LLMS):
        parts += ["", f"### {name}, this implementation", *device_table(name, (GPUS[d] for d in DEVICES))]
    return "\n".join(parts)


def setup(path: str, llm: str, gpu: Gpu, nproc: int = 1, original: bool = False, *options: str) -> Setup:
    config = load_config(path, options, mode="show")
    return Setup(config, find_llm(config, llm)[0], gpu, nproc, original=original)


def paper_table() -> list[str]:
    """The reported figures and ours for the original's code. Reported GB are taken as 10^9 bytes."""
    a100 = GPUS["a100-80g"]
    first = setup(STAGE1, "vicuna-13b", a100, 4, True)
    second = setup(STAGE2, "vicuna-13b", a100, 1, True)
    step = training_time(second).step / 60
    memory = training_memory(first).total
    rows = [
        ("stage 1: 20,000 steps of 256 on 4 A100-80GB", 10, training_time(first).total / 3600, "h"),
        (f"stage 2: {STEPS_IN_PAPER} steps of 12 on 1 A100-80GB, as the paper says", 7, STEPS_IN_PAPER * step, "min"),
        (f"stage 2: {training_time(second).steps:,} steps, as the config says", None,
         training_time(second).steps * step, "min"),
        ("memory of stage 1, batch 64", 70, memory / 1e9, "GB"),
    ]  # fmt: skip
    for llm, reported in (("vicuna-13b", 23), ("vicuna-7b", 11.5)):
        demo = chat_memory(setup(DEMO, llm, a100, 1, True)).total
        rows.append((f"memory of the demo in 8 bit, {llm}", reported, demo / 1e9, "GB"))
    lines = ["| | reported | planned | planned / reported |", "|---|---|---|---|"]
    for what, reported, planned, unit in rows:
        said = f"{reported:g} {unit}" if reported else "-"
        lines.append(f"| {what} | {said} | {planned:.1f} {unit} | {f'{planned / reported:.2f}' if reported else '-'} |")
    return lines


def device_table(llm: str, gpus: Iterable[Gpu]) -> list[str]:
    """One row for each device: both stages as they are or with what makes them fit, and the demo in 16 and 8 bit."""
    head = ["", "stage 1 on 4", "stage 2 on 1", "demo", "demo in 8 bit"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for gpu in gpus:
        cells = [
            gpu.title,
            training_cell(setup(STAGE1, llm, gpu, 4)),
            training_cell(setup(STAGE2, llm, gpu)),
            chat_cell(setup(DEMO, llm, gpu, 1, False, "model.low_resource=False")),
            chat_cell(setup(DEMO, llm, gpu)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def training_cell(setup: Setup) -> str:
    """Batch, memory and time, of the config or of the least change that fits."""
    from . import span

    keys: dict = {}
    if not weights_fit(setup) or training_memory(setup).verdict != "fits":
        way = next(what_fits(setup), None)
        if way is None:
            return "no"
        keys, setup = way
    run = setup.config.run
    batch = (
        f"{run.batch_size_train} x {run.accum_grad_iters}" if run.accum_grad_iters > 1 else f"{run.batch_size_train}"
    )
    how = ", ".join([f"batch {batch}", *(CHANGES[key] for key in keys)])
    return f"{how}: {training_memory(setup).total / GIB:.1f} GiB, {span(training_time(setup).total)}"


def chat_cell(setup: Setup) -> str:
    """Memory of the longest chat, and its speed at best."""
    if not weights_fit(setup):
        return "no"
    memory = chat_memory(setup)
    if memory.verdict == "does not fit":
        return f"no: {memory.total / GIB:.1f} GiB"
    speed = 1 / roofline(count_chat(setup.load).token, setup.gpu)
    rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
    return f"{memory.total / GIB:.1f} GiB{', tight' * (memory.verdict == 'tight')}; {rate} tokens/s"
