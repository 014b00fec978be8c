"""What the model says about the photos: the paper's question, "Continue" after a short answer, perhaps an editor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..common.download import local_path
from ..common.schema import Config
from ..conversation.chat_template import conversation_of
from ..conversation.prompts import Conversation
from ..evaluation.answering import Item, answer_all, made_from
from ..evaluation.data import Record
from ..evaluation.judge import Judge
from ..models.llm import load_tokenizer
from .sentences import ended

# MiniGPT-4, section 3.2.
QUESTION = "Describe this image in detail. Give as many details as possible. Say everything you see."
CONTINUE = "Continue"
SHORT = 80  # tokens; answers up to this length are continued
EDIT = (
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, not English "
    "sentences, and so on. Remove unnecessary repetition. Rewrite any incomplete sentences. Return directly the "
    "results without explanation. Return directly the input paragraph if it is already correct without explanation."
)


@dataclass(frozen=True)
class Description:
    """What was said about one photo.

    Args:
        first, second: the answer, and what "Continue" added; None where it was not asked.
        cut: the first filled all its tokens.
        hit_limit: the last of them did.
        unreadable: why the picture cannot be read, so that nothing was said.
    """

    first: str
    second: str | None = None
    cut: bool = False
    hit_limit: bool = False
    unreadable: str = ""

    @property
    def text(self) -> str:
        """Both joined; an answer that stopped by itself without a full stop gets one."""
        if not self.second:
            return self.first
        return f"{self.first}{'' if self.cut or ended(self.first) else '.'} {self.second}"


def second_question(template: Conversation, question: str, answer: str, again: str) -> str:
    """A question that, asked as the first of a conversation, reads as `question`, `answer` and `again` in turn: so
    second turns go through the chat in batches like first ones."""
    before, after = template.user.split("{text}")
    answered = (template.past or template.assistant) + template.answer.replace("{text}", answer)
    return question + after + answered + before + again


def describe(
    config: Config,
    make_chat: Callable,
    records: Sequence[Record],
    decoding: dict,
    folder: Path,
    *,
    question: str = QUESTION,
    goes_on: bool = True,
    batch: int = 16,
) -> list[Description] | None:
    """What the config's model says about each photo. Answers are kept in `folder`: the same call goes on after a kill.

    Args:
        make_chat: builds the model; not called when all answers are known.
        decoding: how answers are drawn: max_new_tokens, do_sample, seed, ...
        goes_on: ask for more after an answer of SHORT tokens or less.
    Returns:
        None in all processes but the first.
    """
    source, make_chat = made_from(config, decoding), cache(make_chat)
    items = [Item(record, question, "describe") for record in records]
    first = answer_all(make_chat, items, source, folder, batch, "describe: ", everywhere=goes_on)
    if not goes_on:
        return first and [
            Description(a["answer"], None, a["hit_limit"], a["hit_limit"], a.get("unreadable", "")) for a in first
        ]
    tokenizer = load_tokenizer(local_path(config.model.llama_model), config.model.pad_token)
    template = conversation_of(config.model.conv_template, tokenizer)
    lengths = [len(tokenizer(a["answer"], add_special_tokens=False)["input_ids"]) for a in first]
    short = [i for i, length in enumerate(lengths) if 0 < length <= SHORT]
    items = [
        Item(records[i], second_question(template, question, first[i]["answer"], CONTINUE), "continue") for i in short
    ]
    more = answer_all(make_chat, items, source, folder, batch, "continue: ")
    if more is None:
        return None
    second = dict(zip(short, more, strict=True))
    found = []
    for i, a in enumerate(first):
        last = second.get(i)
        found.append(Description(a["answer"], last and last["answer"], a["hit_limit"], (last or a)["hit_limit"],
                                 a.get("unreadable", "")))  # fmt: skip
    return found


def edited(judge: Judge, texts: Sequence[str], file: Path) -> list[str]:
    """Each text as the judge corrects it, by the paper's words; what is empty stays so. Replies are kept in `file`."""
    asked = [i for i, text in enumerate(texts) if text.strip()]
    replies = judge.replies([(f"{EDIT}\n\n{texts[i]}", None) for i in asked], file)
    found = dict(zip(asked, replies, strict=True))
    return [found.get(i, "").strip() for i in range(len(texts))]
