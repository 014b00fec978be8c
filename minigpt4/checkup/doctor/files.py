"""Checks of the weight files beside the LLM, and of the data.

Whether a file fits is decided by the model's own loaders, run on the meta device with the shapes of the file's header.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...common.identify import DOWNLOAD_AGAIN, NO_WEIGHTS, FileFacts
from ...common.paths import expand_shards
from ...common.registry import CONVERSATIONS, DATASETS
from ...models.mini_gpt4 import MiniGPT4
from ...models.prompting import read_prompts
from ...models.shapes import META
from .context import FAULTS, LLM, WEIGHTS, Context
from .page import LOOK, OK, WRONG, Finding, of_error

VIT, QFORMER, CKPT = WEIGHTS
MANY_STEPS = 10_000  # stage 1 takes 20,000, stage 2 1,000 at most
# Which key wants what, and the published file of it.
WANTED = {
    VIT: ("the weights of a vision tower", "eva_vit_g.pth"),
    QFORMER: ("a Q-Former with query_tokens and ln_vision", "blip2_pretrained_flant5xxl.pth"),
    CKPT: ("a MiniGPT-4 checkpoint (llama_proj)", "checkpoint_N.pth of a run, or the published checkpoint"),
}
BELONGS = {"eva_vit": VIT, "vit": VIT, "vision": VIT, "qformer": QFORMER, "minigpt4": CKPT, "llm": LLM}


def check_vit(context: Context) -> Finding:
    """model.vit_ckpt holds the weights of the vision tower that the config describes."""
    return _check(context, VIT, lambda model, file: model.load_vit(file.tensors, META))


def check_qformer(context: Context) -> Finding:
    """model.q_former_model holds the Q-Former that the config describes."""
    return _check(context, QFORMER, lambda model, file: model.load_qformer(file.tensors, META))


def check_ckpt(context: Context) -> Finding:
    """model.ckpt fits the model, and was trained for what it is used for: a chat needs a checkpoint of stage 2."""
    found = _check(context, CKPT, lambda model, file: model.load_trained(str(file.path), file.tensors))
    if found.mark != OK or CKPT not in context.files:
        return found
    mark, text, do = _trained_for(context.files[CKPT], context)
    return Finding(mark, f"{found.text}\n{text}", do)


def _check(context: Context, key: str, load: Callable[[MiniGPT4, FileFacts], None]) -> Finding:
    """What the file of `key` is, and whether `load` can load it."""
    model = context.config.model
    path, file = getattr(model, key.removeprefix("model.")), context.files.get(key)
    if path is None:
        without = "trained from scratch"
        if key == CKPT:
            without = "the projection has random weights"
        elif key == QFORMER and not model.has_qformer:
            without = "there is no Q-Former, and ln_vision has its initial weights"
        return Finding(OK, f"not set: {without}")
    if file is None:
        return Finding(LOOK, f"{path}\nnot fetched yet: that happens at first use. Then ask the doctor again")
    text = f"{path}\n{file.describe()}"
    if file.kind in NO_WEIGHTS:
        return Finding(WRONG, text, DOWNLOAD_AGAIN[file.kind])
    try:
        if context.shapes is not None:
            load(context.shapes, file)
    except (*FAULTS, IndexError) as error:  # odd shapes stop the interpolation
        if BELONGS.get(file.kind) == key or (key == QFORMER and "queries" in file.sizes):
            lines = [line.strip() for line in str(error).splitlines()]
            why = "does not fit: " + "; ".join(line[:250] + "..." * (len(line) > 250) for line in lines[1:] or lines)
        else:
            why = f"not {WANTED[key][0]}"
        return Finding(WRONG, f"{text}\n{why}", _instead(key, file, context))
    return Finding(OK, text)


def _instead(key: str, file: FileFacts, context: Context) -> str:
    """What to write or do when a file does not fit its key."""
    example, home = WANTED[key][1], BELONGS.get(file.kind)
    if file.kind == "resume":
        beside = file.path.with_name(re.sub(r"\.resume\.pt$", ".pth", file.path.name))
        return f"write the checkpoint beside it: {beside}" if beside.is_file() else f"write {example}"
    if home == key:
        of_one_size = "take the checkpoint and the LLM of one size, and " if key == CKPT else ""
        return f"{of_one_size}write the sizes of this file into the config, or the path of another {example}"
    other = context.files.get(home)
    if other and BELONGS.get(other.kind) == key:
        return f"exchange the paths of {key} and {home}"
    return f"write the path of {example}" + (f"; this one belongs in {home}" if home else "")


# -- which stage a checkpoint is of -----------------------------------------------------------------------------------


def _trained_for(file: FileFacts, context: Context) -> tuple[str, str, str]:
    """(mark, text, do): whether the training of a checkpoint suits what it is used for."""
    stage, why = stage_of(file.facts)
    by_name = _stage_in(file.path.name) if stage is None else None
    if by_name:
        stage, why = by_name, f"its file name says so; {why}"
    at = ", ".join(f"{k} {file.facts[k]}" for k in ("epoch", "step") if isinstance(file.facts.get(k), int))
    at = f" ({at})" if at else ""
    if stage is None:
        return OK, f"stage 1 or 2 cannot be told{at}: {why}", ""
    if context.mode == "chat" and stage == 1:
        text = f"a stage-1 checkpoint{at}: {why}. It continues captions; it does not hold a conversation"
        return LOOK if by_name else WRONG, text, "write a checkpoint of stage 2"
    asked = "" if by_name else _section(file.facts["config"], "model").get("prompt_template")
    name = context.config.model.conv_template
    if context.mode == "chat" and asked and asked != "{}" and name in CONVERSATIONS.names():
        opens = CONVERSATIONS.get(name).assistant.strip()
        if opens not in asked:
            text = f"stage 2{at}, trained with prompts like {asked!r}; the chat ({name}) opens an answer with {opens!r}"
            return WRONG, text, "write the conv_template it was trained for"
    return OK, f"stage {stage}{at}: {why}", ""


def stage_of(facts: dict[str, Any]) -> tuple[int | None, str]:
    """(1, 2 or None where it cannot be told; why) of the training that wrote a checkpoint.

    The config inside it decides: stage 1 has no instructions and closes a caption with a newline, stage 2 puts
    descriptions into the conversation template.
    """
    if not isinstance(facts.get("config"), dict):
        return None, "the file holds no config of its training"
    model, run, datasets = (_section(facts["config"], part) for part in ("model", "run", "datasets"))
    asked = model.get("prompt_path") or any(isinstance(d, dict) and d.get("prompt_path") for d in datasets.values())
    if asked:
        return 2, f"trained with the instructions of {asked if isinstance(asked, str) else 'its datasets'}"
    if "cc_sbu_align" in datasets:
        return 2, "trained on cc_sbu_align"
    if model or datasets:
        on = f" on {' and '.join(datasets)}" if datasets else ""
        return 1, f"trained{on} without instructions, end_sym {model.get('end_sym') or chr(10)!r}"
    if stage := _stage_in(str(run.get("output_dir", ""))):
        return stage, f"its run wrote to {run['output_dir']}"
    steps = [run.get("max_epoch"), run.get("iters_per_epoch")]
    if all(isinstance(n, int) for n in steps) and steps[0] * steps[1] >= MANY_STEPS:
        return 1, f"a run of {steps[0] * steps[1]:,} steps"
    return None, "the config inside it names neither data nor instructions"


def _section(config: dict, name: str) -> dict:
    return config.get(name) if isinstance(config.get(name), dict) else {}


def _stage_in(name: str) -> int | None:
    """The stage that the name of a folder or file says."""
    words = ((1, "stage1"), (1, "pretrain"), (2, "stage2"), (2, "finetune"))
    return next((stage for stage, word in words if word in name.lower()), None)


# -- data -------------------------------------------------------------------------------------------------------------


def check_data(context: Context) -> list[Finding]:
    """The data of each dataset of a training run are there."""
    found = []
    for name, dataset in context.config.datasets.items() if context.mode == "train" else ():
        wrong, builder = any(key.startswith(f"datasets.{name}.") for key in context.problems), dataset.builder or name
        if wrong or builder not in DATASETS.names():
            continue
        key, storage = f"datasets.{name}.build_info.storage", dataset.build_info.storage
        try:
            pairs = getattr(DATASETS.get(builder)(dataset, None, str), "pairs", None)
            if dataset.prompt_path:
                read_prompts(dataset.prompt_path, "{}", f"datasets.{name}.prompt_path")
        except FAULTS as error:
            found.append(of_error(error, "" if str(error).startswith("datasets.") else key))
            continue
        count = f"{len(pairs):,} images with texts" if pairs else f"{len(expand_shards(storage)):,} shards"
        if pairs and not (image := Path(pairs[0][0])).is_file():
            text = f"{storage}\n{count}; the first, {image}, is not there"
            found.append(Finding(WRONG, text, "see dataset/README_2_STAGE.md", key))
        else:
            found.append(Finding(OK, f"{storage}\n{count}", name=key))
    return found
