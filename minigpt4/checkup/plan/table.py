"""The tables of docs/plan.md: the figures that the paper gives beside the plan for them, and common devices."""

from dataclasses import replace

from ...common.gpus import GPUS, roofline
from .costs import next_token_work
from .page import span
from .predict import GIB, chat_memory, fits_training, make_setup, training_memory, training_time, verdict, what_fits
from .setup import Setup
from .shapes import LLMS

STAGE1 = "train_configs/minigpt4_stage1_pretrain.yaml"
STAGE2 = "train_configs/minigpt4_stage2_finetune.yaml"
DEMO = "eval_configs/minigpt4_eval.yaml"
STEPS_IN_PAPER = 400  # of stage 2
DEVICES = ("3090-24g", "4090-24g", "a100-40g", "l40s-48g", "a100-80g", "h100-80g", "cpu")
CHANGES = {"use_grad_checkpoint": "checkpointing", "low_resource": "8 bit"}


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
            cells += [chat_cell(replace(demo, gpu=gpu).changed(low_resource=low)) for low in (False, True)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paper_table() -> list[str]:
    """The reported figures, and ours for the original's code. Reported GB are read as 10^9 bytes."""
    a100 = GPUS["a100-80g"]
    first = make_setup(STAGE1, "vicuna-13b", a100, 4, original=True)
    second = replace(first, config=make_setup(STAGE2, "vicuna-13b", a100).config, nproc=1)
    time = training_time(second)
    rows = [
        ("stage 1: 20,000 steps of 256 on 4 A100-80GB", 10, training_time(first)["total"] / 3600, "h"),
        (f"stage 2: {STEPS_IN_PAPER} steps of 12 on 1 A100-80GB, as the paper says", 7,
         STEPS_IN_PAPER * time["step"] / 60, "min"),
        (f"stage 2: {time['steps']:,} steps, as the config says", None, time["total"] / 60, "min"),
        ("memory of stage 1, batch 64", 70, training_memory(first)["total"] / 1e9, "GB"),
    ]  # fmt: skip
    for llm, reported in (("vicuna-13b", 23), ("vicuna-7b", 11.5)):
        demo = chat_memory(make_setup(DEMO, llm, a100, original=True))
        rows.append((f"memory of the demo in 8 bit, {llm}", reported, demo["total"] / 1e9, "GB"))
    lines = ["| | reported | planned | planned / reported |", "|---|---|---|---|"]
    for what, reported, planned, unit in rows:
        known = (f"{reported:g} {unit}", f"{planned / reported:.2f}") if reported else ("-", "-")
        lines.append(f"| {what} | {known[0]} | {planned:.1f} {unit} | {known[1]} |")
    return lines


def training_cell(setup: Setup) -> str:
    """Batch, memory and time of the config, or of the least change that fits."""
    keys, fitting = ({}, setup) if fits_training(setup) else next(what_fits(setup), ({}, None))
    if fitting is None:
        return "no"
    run = fitting.config.run
    times = f" x {run.accum_grad_iters}" if run.accum_grad_iters > 1 else ""
    how = ", ".join([f"batch {run.batch_size_train}{times}", *(CHANGES[key] for key in keys)])
    return f"{how}: {training_memory(fitting)['total'] / GIB:.1f} GiB, {span(training_time(fitting)['total'])}"


def chat_cell(setup: Setup) -> str:
    """Memory of the longest chat, and its tokens a second at best."""
    memory = chat_memory(setup)
    size, fits = f"{memory['total'] / GIB:.1f} GiB", verdict(memory, setup.gpu)
    if fits == "does not fit":
        return f"no: {size}"
    rate = 1 / roofline(next_token_work(setup), setup.gpu)
    return f"{size}{', tight' * (fits == 'tight')}; {rate:.{0 if rate >= 10 else 1}f} tokens/s"
