"""Ask the model about the photos: the paper's question, "Continue" after a short answer, then perhaps an editor.

Source: MiniGPT-4, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def second_question(template: Conversation, question: str, answer: str, again: str) -> str:
    """One question that the template writes as `question`, `answer` and `again` in three turns. So second turns go
    through the chat in batches, as first turns do."""
    before, after = template.user.split("{text}")
    answered = (template.past or template.assistant) + template.answer.replace("{text}", answer)
    return question + after + answered + before + again


def joined(first: dict, second: dict | None) -> str:
    """Both answers, with a full stop between them where the first stopped by itself without one."""
    if not second or not second["answer"]:
        return first["answer"]
    stop = "" if first["hit_limit"] or SENTENCE_END.search(first["answer"]) else "."
    return f"{first['answer']}{stop} {second['answer']}"


def describe(
    config: Config, make_chat: Callable, records: Sequence[Record], decoding: dict, folder: Path, question: str,
    goes_on: bool, batch: int,
) -> list[tuple[dict, dict | None]] | None:  # fmt: skip
    """Describe each photo with the config's model. Answers are kept in `folder`, so a killed call can be repeated.

    Args:
        make_chat, decoding: see `answer_all`.
        goes_on: ask for more after an answer of SHORT tokens or less.
    Returns:
        of each photo the answer and that to "Continue" (None: not asked); None in all processes but the first.
    """
    source, make_chat = made_from(config, decoding), cache(make_chat)
    items = [Item(record, question, "describe") for record in records]
    first = answer_all(make_chat, items, source, folder, batch, "describe: ", everywhere=goes_on)
    if not goes_on:
        return first and [(answer, None) for answer in first]
    tokenizer = load_tokenizer(local_path(config.model.llama_model), config.model.pad_token)
    template = conversation_of(config.model.conv_template, tokenizer)
    lengths = [len(tokenizer(a["answer"], add_special_tokens=False)["input_ids"]) for a in first]
    short = [i for i, length in enumerate(lengths) if 0 < length <= SHORT]
    asked = [second_question(template, question, first[i]["answer"], CONTINUE) for i in short]
    items = [Item(records[i], text, "continue") for i, text in zip(short, asked, strict=True)]
    second = answer_all(make_chat, items, source, folder, batch, "continue: ")
    if second is None:
        return None
    by_place = dict(zip(short, second, strict=True))
    return [(answer, by_place.get(i)) for i, answer in enumerate(first)]


def edited(judge: Judge, texts: Sequence[str], file: Path) -> list[str]:
    """Each text as a chat model corrects it, asked in the paper's words; empty texts stay empty. `file` keeps the
    replies, so that nothing is asked twice."""
    asked = [text for text in texts if text.strip()]
    replies = iter(judge.replies([(f"{EDIT}\n\n{text}", None) for text in asked], file))
    return [next(replies).strip() if text.strip() else "" for text in texts]
