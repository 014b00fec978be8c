"""Checks of the weight files beside the LLM.

Whether a file fits is decided by the model's own loaders, run on the meta device with the shapes of the file's header.
"""

from collections.abc import Callable
from typing import Any

from ...common.identify import DOWNLOAD_AGAIN, NO_WEIGHTS, FileFacts
from ...models.mini_gpt4 import MiniGPT4
from ...models.shapes import META
from .context import FAULTS, LLM, LOOK, OK, WEIGHTS, WRONG, Context, Finding

VIT, QFORMER, CKPT = WEIGHTS
WANTED = {
    VIT: "the weights of a vision tower (eva_vit_g.pth)",
    QFORMER: "a Q-Former with query_tokens and ln_vision (blip2_pretrained_flant5xxl.pth)",
    CKPT: "a MiniGPT-4 checkpoint (checkpoint_N.pth of a run, or the published one)",
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
    facts = context.files[CKPT].facts
    stage, why = stage_of(facts)
    at = f" (epoch {facts['epoch']})" if "epoch" in facts else ""
    if context.mode == "chat" and stage == 1:
        text = f"{found.text}\na stage-1 checkpoint{at}: {why}. It continues captions; it does not hold a conversation"
        return Finding(WRONG, text, "write a checkpoint of stage 2")
    told = f"stage {stage}" if stage else "stage 1 or 2 cannot be told"
    return Finding(OK, f"{found.text}\n{told}{at}: {why}")


def _check(context: Context, key: str, load: Callable[[MiniGPT4, FileFacts], None]) -> Finding:
    """What the file of `key` is, and whether `load` can load it."""
    model = context.config.model
    path, file = getattr(model, key.removeprefix("model.")), context.files.get(key)
    if path is None:
        random = "there is no Q-Former, and ln_vision" if key == QFORMER and not model.has_qformer else "it"
        return Finding(OK, f"not set: {random} has its initial weights")
    if file is None:
        return Finding(LOOK, f"{path}\nnot fetched yet: that happens at first use. Then ask the doctor again")
    text = f"{path}\n{file.describe()}"
    if file.kind in NO_WEIGHTS:
        return Finding(WRONG, text, DOWNLOAD_AGAIN[file.kind])
    try:
        shapes = context.shapes
    except FAULTS:  # check_model says why
        return Finding(OK, text)
    try:
        load(shapes, file)
    except (*FAULTS, IndexError) as error:  # odd shapes stop the interpolation
        home = BELONGS.get(file.kind)
        if home == key:
            why = "; ".join(line.strip()[:250] for line in str(error).splitlines()[1:]) or str(error)
            do = "write the sizes of this file into the config, or the path of a file for the ViT and LLM of the config"
            return Finding(WRONG, f"{text}\ndoes not fit: {why}", do)
        do = f"write the path of {WANTED[key]}" + (f"; this one belongs in {home}" if home else "")
        return Finding(WRONG, f"{text}\nnot {WANTED[key]}", do)
    return Finding(OK, text)


def stage_of(facts: dict[str, Any]) -> tuple[int | None, str]:
    """(1, 2 or None where it cannot be told; why) of the training that wrote a checkpoint, by the config inside it:
    stage 1 has no instructions, stage 2 puts descriptions into the conversation template."""
    config = facts.get("config") or {}
    model, datasets = config.get("model") or {}, config.get("datasets") or {}
    if not model and not datasets:
        return None, "the file holds no config of its model and data"
    asked = [model.get("prompt_path"), *(dataset and dataset.get("prompt_path") for dataset in datasets.values())]
    on = f" on {' and '.join(datasets)}" if datasets else ""
    if any(asked) or "cc_sbu_align" in datasets:
        return 2, f"trained{on} with instructions"
    return 1, f"trained{on} without instructions, end_sym {model.get('end_sym') or chr(10)!r}"
