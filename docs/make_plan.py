"""Makes the tables of docs/plan.md: `python docs/make_plan.py`, between the marks of the page."""

from collections.abc import Sequence
from dataclasses import replace

from minigpt4.checkup.plan.costs import Setup, next_token_work
from minigpt4.checkup.plan.page import span
from minigpt4.checkup.plan.predict import GIB, fits, needed_memory, training_time, verdict, what_fits
from minigpt4.checkup.plan.shapes import LLMS, Shapes, find_llm
from minigpt4.common.config import load_config
from minigpt4.common.gpus import GPUS, Gpu, roofline

STAGE1 = "train_configs/minigpt4_stage1_pretrain.yaml"
STAGE2 = "train_configs/minigpt4_stage2_finetune.yaml"
DEMO = "eval_configs/minigpt4_eval.yaml"
STEPS_IN_PAPER = 400  # of stage 2
DEVICES = ("3090-24g", "4090-24g", "a100-40g", "l40s-48g", "a100-80g", "h100-80g", "cpu")
CHANGES = {"model.use_grad_checkpoint": "checkpointing", "model.low_resource": "8 bit"}


def make_setup(path: str, llm: str | None, gpu: Gpu, nproc: int = 1, options: Sequence[str] = (), **more) -> Setup:
    """The setup of a config file; `more` are fields of Setup."""
    config = load_config(path, options, mode="show")
    return Setup(config, Shapes(config.model, find_llm(config, llm)[0]), gpu, nproc, **more)


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


if __name__ == "__main__":
    print(tables())
