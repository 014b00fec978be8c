"""Ask the model about the photos: the paper's question, "Continue" after a short answer, then perhaps an editor.

Source: MiniGPT-4, section 3.2.
"""

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
from .clean import SENTENCE_END

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
    """What the model said about one photo."""

    first: str
    second: str | None = None  # the answer to "Continue"; None when it was not asked
    cut: bool = False  # the first answer used all its tokens
    hit_limit: bool = False  # the last answer did
    unreadable: str = ""  # why the picture cannot be read

    @property
    def text(self) -> str:
        """Both answers joined, with a full stop between them where the first stopped by itself without one."""
        if not self.second:
            return self.first
        return f"{self.first}{'' if self.cut or SENTENCE_END.search(self.first) else '.'} {self.second}"


def second_question(template: Conversation, question: str, answer: str, again: str) -> str:
    """One question that the template writes as `question`, `answer` and `again` in three turns.

    So second turns go through the chat in batches, as first turns do.
    """
    before, after = template.user.split("{text}")
    answered = (template.past or template.assistant) + template.answer.replace("{text}", answer)
    return question + after + answered + before + again


def describe(
    config: Config, make_chat: Callable, records: Sequence[Record], decoding: dict, folder: Path, question: str,
    goes_on: bool, batch: int,
) -> list[Description] | None:  # fmt: skip
    """Describe each photo with the config's model. Answers are kept in `folder`, so a killed call can be repeated.

    Args:
        make_chat, decoding: see `answer_all`.
        goes_on: ask for more after an answer of SHORT tokens or less.
    Returns:
        one description a photo; None in all processes but the first.
    """
    source, make_chat = made_from(config, decoding), cache(make_chat)
    items = [Item(record, question, "describe") for record in records]
    first = answer_all(make_chat, items, source, folder, batch, "describe: ", everywhere=goes_on)
    second: dict[int, dict] = {}
    if goes_on:
        tokenizer = load_tokenizer(local_path(config.model.llama_model), config.model.pad_token)
        template = conversation_of(config.model.conv_template, tokenizer)
        lengths = [len(tokenizer(a["answer"], add_special_tokens=False)["input_ids"]) for a in first]
        short = [i for i, length in enumerate(lengths) if 0 < length <= SHORT]
        asked = [second_question(template, question, first[i]["answer"], CONTINUE) for i in short]
        items = [Item(records[i], text, "continue") for i, text in zip(short, asked, strict=True)]
        more = answer_all(make_chat, items, source, folder, batch, "continue: ")
        second = dict(zip(short, more, strict=True)) if more is not None else None
    if first is None or second is None:
        return None
    return [
        Description(
            first=a["answer"],
            second=second[i]["answer"] if i in second else None,
            cut=a["hit_limit"],
            hit_limit=second.get(i, a)["hit_limit"],
            unreadable=a.get("unreadable", ""),
        )
        for i, a in enumerate(first)
    ]


def edited(judge: Judge, texts: Sequence[str], file: Path) -> list[str]:
    """Each text as a chat model corrects it, asked in the paper's words; empty texts stay empty. `file` keeps the
    replies, so that nothing is asked twice."""
    asked = [text for text in texts if text.strip()]
    replies = iter(judge.replies([(f"{EDIT}\n\n{text}", None) for text in asked], file))
    return [next(replies).strip() if text.strip() else "" for text in texts]
