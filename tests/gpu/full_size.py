"""Part 2: both stages of training at full size, beside what `minigpt4 plan` says of this card."""

from collections.abc import Callable
from functools import partial

from minigpt4.checkup.plan.costs import Setup
from minigpt4.checkup.plan.predict import GIB, needed_memory, training_time
from minigpt4.checkup.plan.shapes import Shapes
from minigpt4.common.registry import TASKS

from .full import card_of, llm_config, memory_used, random_model, read_config, summary, train, write_data
from .setting import Setting

STEPS = 20


def measurements(setting: Setting) -> dict[str, Callable[[], dict]]:
    return {f"{stage}, training": partial(stage_speed, setting, stage) for stage in ("stage 1", "stage 2")}


def stage_speed(setting: Setting, stage: str) -> dict:
    """The real task, loader, model and loop on made shards; random weights."""
    workers = 1 if setting.small else 8
    config = read_config(setting, stage)
    data = write_data(setting, config.model.max_txt_len, 2 * workers)
    stored = [f"datasets.cc_sbu.build_info.storage={data / 'cc_sbu' / '*.tar'}", "datasets.laion.sample_ratio=0"]
    if stage == "stage 2":
        stored = [f"datasets.cc_sbu_align.build_info.storage={data / 'align'}"]
    config = read_config(setting, stage, f"run.num_workers={workers}", *stored)
    llm = llm_config(setting)
    task, model = TASKS.get(config.run.task)(config), random_model(setting, config, llm)
    steps = 4 if setting.small else STEPS
    values = {"batch": config.run.batch_size_train} | summary(train(setting, config, task, model, stage, steps))
    if setting.cuda:
        values["memory_gib"] = memory_used(setting.device)
    return values | predicted(setting, config, llm, values)


def predicted(setting: Setting, config, llm, values: dict) -> dict:
    """The planner's speed and memory for this card, and measured / predicted. A step without waiting for data."""
    gpu = card_of(setting)
    if gpu is None:
        return {"note": "the planner does not know this card"}
    setup = Setup(config, Shapes(config.model, llm), gpu)
    time, memory = training_time(setup), needed_memory(setup, "train")["total"] / GIB
    speed = config.run.batch_size_train / (time["compute"] + time["optimizer"])
    found = {"planned_samples_per_second": round(speed, 2)}
    found["speed_measured_by_planned"] = round(values["samples_per_second"] / speed, 3)
    found["planned_memory_gib"] = round(memory, 2)
    if "memory_gib" in values:
        found["memory_measured_by_planned"] = round(values["memory_gib"] / memory, 3)
    return found
