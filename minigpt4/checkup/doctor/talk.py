"""The doctor on how the LLM is spoken to: is conv_template the LLM's own, and does training ask as the chat does?"""

import re
from dataclasses import replace

from ...common.errors import UserError, some
from ...common.schema import Config, ModelConfig
from ...common.training_form import training_form_problems
from ...conversation.chat_template import conversation_of, with_training_form
from ...conversation.prompts import VICUNA_V0, Conversation
from ...models.llm import pad_apart_from
from ...models.mini_gpt4 import read_prompts
from .llm import VICUNA, LlmFolder
from .page import LOOK, OK, WRONG, Row
from .tokenizer import FAMILIES, family, look_at_tokenizer

TEMPLATE = "model.conv_template"


def look_at_talk(config: Config, folder: LlmFolder) -> list[Row]:
    """Rows on the tokenizer, conv_template, and what training puts around its texts."""
    model = config.model
    rows, tokenizer = look_at_tokenizer(folder, model.pad_token)
    if tokenizer is None:
        return rows
    try:
        template = conversation_of(model.conv_template, tokenizer)
    except (UserError, KeyError) as error:
        return [*rows, _row(WRONG, TEMPLATE, str(error).removeprefix(f"{TEMPLATE}: "), "write the name of a template")]
    if folder.vocabulary:
        rows.append(_template(folder, tokenizer, template, model.conv_template))
    model = with_training_form(model, tokenizer)
    if model.pad_token is None:
        pad_apart_from(tokenizer, tokenizer(model.end_sym, add_special_tokens=False)["input_ids"])
    config = replace(config, model=model)
    unlike = {key: _row(WRONG, key, *said) for key, said in training_form_problems(config, template).items()}
    return [*rows, _end_symbol(model, tokenizer, template, unlike), *_prompts(config, unlike)]


def _row(mark: str, name: str, text: str, do: str = "") -> Row:
    return Row("Language", mark, name, text, do)


def _template(folder: LlmFolder, tokenizer, template: Conversation, named: str) -> Row:
    """Is the config's way of talking the one that this LLM was tuned on?"""
    which, why = family(folder, tokenizer)
    own = "chatml" if which == "chatml" else "auto, for the chat template in the LLM's folder"
    marks = dict.fromkeys(re.findall(r"<\|[^|<>\s]+\|>", template.user + template.assistant + template.answer))
    split = [m for m in marks if len(tokenizer(m, add_special_tokens=False)["input_ids"]) != 1]
    if split:
        text = f"{named}: the LLM has no token {some(split)}, so it was not tuned on this template"
        return _row(WRONG, TEMPLATE, text, f"write {VICUNA_V0.name if which == 'vicuna_v0' else own}")
    if named != VICUNA_V0.name:
        return _row(OK, TEMPLATE, f"{named}: answers end with {some(map(repr, template.stop))}")
    if which == "vicuna_v0":
        return _row(OK, TEMPLATE, f"{named}: the LLM has Vicuna v0's form ({why})")
    if which in ("v0_without_pad", "grown"):
        do = "fetch added_tokens.json too: this project does not need it, other programs may"
        do = do if which == "v0_without_pad" else f"was it tuned on {VICUNA_V0.assistant!r}? If not, write {own}"
        return _row(LOOK, TEMPLATE, f"{named}: this looks like {FAMILIES[which]} ({why})", do)
    likely = "a delta of Vicuna v1.1 or later, not of v0" if folder.delta else FAMILIES[which]
    text = f"{named} is Vicuna v0's way of talking, but this looks like {likely} ({why})"
    if which == "vicuna_later":
        text += "; it talks USER: and ASSISTANT: and ends with </s>, while MiniGPT-4's prompts and checkpoints are v0's"
    return _row(WRONG, TEMPLATE, text, f"write {own}" if which in ("chatml", "other") else VICUNA)


def _end_symbol(model: ModelConfig, tokenizer, template: Conversation, unlike: dict[str, Row]) -> Row:
    name, end = "model.end_sym", model.end_sym
    if tokenizer.pad_token_id in tokenizer(end, add_special_tokens=False)["input_ids"]:
        text = f"{end!r} holds the padding token, which is never trained on: answers would not learn to end"
        return _row(WRONG, name, text, "write another special token of the vocabulary as model.pad_token")
    ends = any(stop in end for stop in template.stop)
    return unlike.get(name) or _row(OK, name, f"{end!r}" + ("" if ends else ", for captions without a prompt"))


def _prompts(config: Config, unlike: dict[str, Row]) -> list[Row]:
    """The instructions, as training writes them, against how the chat asks."""
    named = {"model.prompt_path": config.model.prompt_path}
    named |= {f"datasets.{name}.prompt_path": dataset.prompt_path for name, dataset in config.datasets.items()}
    rows = [unlike["model.prompt_template"]] if "model.prompt_template" in unlike else []
    for key, path in named.items():
        if not path:
            continue
        try:
            prompts = read_prompts(path, config.model.prompt_template, key)
        except UserError as error:
            rows.append(_row(WRONG, key, str(error).removeprefix(f"{key}: "), "write prompts/alignment.txt"))
            continue
        if "model.prompt_template" not in unlike:
            rows.append(_row(OK, key, f"{path}: {len(prompts)} instructions, asked as the chat asks"))
    return rows
