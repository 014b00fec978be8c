"""`model.conv_template: auto`: how the LLM's own tokenizer writes a conversation, as one of our templates.

The tokenizer's Jinja template is rendered on a conversation of known words; what stands between them are the parts of
a `Conversation`. Our prompts are then, letter for letter, what `tokenizer.apply_chat_template` writes.
"""

import logging
import re
from dataclasses import replace
from itertools import takewhile

from jinja2 import TemplateError

from ..common.errors import ConfigError
from ..common.registry import CONVERSATIONS
from ..common.schema import ModelConfig
from .prompts import Conversation

log = logging.getLogger("minigpt4")
QUESTION, ANSWER, NEXT = "first-question", "first-answer", "second-question"
# Some templates (Llama 3.2) write the day's date. A prompt that changes from day to day cannot be trained on, so here
# it is the day that they write themselves where there is no clock.
FIXED_DATE = (
    "{%- macro strftime_now(form) -%}"
    "{%- if form == '%Y-%m-%d' -%}2024-07-26{%- else -%}26 Jul 2024{%- endif -%}"
    "{%- endmacro -%}"
)


def conversation_of(conv_template: str, tokenizer) -> Conversation:
    """The registered template of this name, or for `auto` the tokenizer's own. Raises ConfigError, RegistryError."""
    return read_chat_template(tokenizer) if conv_template == "auto" else CONVERSATIONS.get(conv_template)


def with_training_form(config: ModelConfig, tokenizer) -> ModelConfig:
    """`config` with the prompt_template and end_sym that it leaves to conv_template filled in. Without a prompt (stage
    1) a caption ends with a newline, as in the original. Without a tokenizer (shapes alone), `auto` reads nothing."""
    own = {"prompt_template": "{}", "end_sym": "\n"}
    if tokenizer is not None or config.conv_template != "auto":
        conversation = conversation_of(config.conv_template, tokenizer)
        own["prompt_template"] = conversation.prompt_template
        if config.prompt_path:
            own["end_sym"] = conversation.end_sym
    written = {key: getattr(config, key) for key in own if getattr(config, key) is not None}
    for key, value in written.items():
        if config.conv_template == "auto" and config.prompt_path and tokenizer is not None and value != own[key]:
            log.warning("model.%s: training uses %r, though the LLM's own chat template says %r; write null to follow "
                        "it", key, value, own[key])  # fmt: skip
    return replace(config, **own | written)


def read_chat_template(tokenizer) -> Conversation:
    """The tokenizer's chat template as a Conversation, with the system text that it has by default and no thinking.
    Raises ConfigError: it has none, or writes later turns unlike the first."""
    where = f"model.conv_template: auto: the tokenizer of {tokenizer.name_or_path}"
    if not tokenizer.chat_template:
        names = ", ".join(CONVERSATIONS.names())
        raise ConfigError(
            f"{where} has no chat template (is the LLM a base model?); write {names} or register one of your own"
        )
    try:
        before, opening = _render(tokenizer, QUESTION).split(QUESTION)  # ends where the LLM is to answer
        user_after = _render(tokenizer, QUESTION, generate=False).split(QUESTION)[1]
        closing = _render(tokenizer, QUESTION, ANSWER, generate=False).split(ANSWER)[1]
        before_again, rest = _render(tokenizer, QUESTION, ANSWER, NEXT).split(QUESTION)
        past, rest = rest.split(ANSWER)
        between, opening_again = rest.split(NEXT)
    except (TemplateError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"{where} cannot write a conversation of two turns: {error}") from error

    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    names = "".join(f"{re.escape(token)}|" for token in sorted(special, key=len, reverse=True))
    atoms = re.compile(f"{names}.", re.DOTALL)  # special tokens whole, everything else letter by letter

    def common(one: str, other: str) -> str:
        """What both begin with; a template may end a text for good (Phi-3) where it would else go on."""
        pairs = zip(atoms.findall(one), atoms.findall(other), strict=False)
        return "".join(atom for atom, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def first(text: str) -> str:
        """The first special token of `text`; without one, its words."""
        return next((atom for atom in atoms.findall(text) if len(atom) > 1), text.strip())

    # A user's turn opens alike every time; what stands before that in `between` ends the answer. Special tokens are not
    # cut: `</s>[INST]` and `<s>[INST]` have no `s>` in common.
    end = common(closing, between)
    user_before, user_after = between.removeprefix(end), common(user_after, opening)
    alike = before == before_again and opening == opening_again and past.startswith(user_after)
    if not alike or not end.strip() or not before.endswith(user_before):
        raise ConfigError(
            f"{where} does not write every turn alike, or does not mark where an answer ends; register a template of "
            "your own and name it here"
        )
    assistant, past, lead = opening.removeprefix(user_after), past.removeprefix(user_after), ""
    if past.startswith(assistant):
        lead, past = past.removeprefix(assistant), ""
    stop = dict.fromkeys([first(end), first(user_before)] if user_before.strip() else [first(end)])
    return Conversation(
        name="auto", system=before.removesuffix(user_before), user=user_before + "{text}" + user_after,
        assistant=assistant, answer=lead + "{text}" + end, stop=tuple(stop), past=past,
    )  # fmt: skip


def _render(tokenizer, *texts: str, generate: bool = True) -> str:
    """User and assistant in turn. `generate`: up to where the LLM goes on."""
    return tokenizer.apply_chat_template(
        [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)],
        chat_template=FIXED_DATE + tokenizer.get_chat_template(), tokenize=False, add_generation_prompt=generate,
        enable_thinking=False,  # Qwen3, SmolLM3: captions hold no thoughts
    )  # fmt: skip
