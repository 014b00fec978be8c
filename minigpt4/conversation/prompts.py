"""What a conversation looks like as text, for each family of LLMs.

`model.conv_template` names one of templates.toml. It must be the form that the LLM was tuned on: Vicuna v0 reads
`###Human:` and `###Assistant:`, SmolLM2 ChatML. Training takes its prompt and its end symbol from the same template.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ..common.registry import CONVERSATIONS

IMAGE_MARK = "<ImageHere>"  # stands for the image tokens, in prompt texts and in what people read
IMAGE_BEFORE, IMAGE_AFTER = "<Img>", "</Img> "  # the text around each image, as in stage-2 training


@dataclass(frozen=True)
class Conversation:
    """How turns are written, where generation stops, and how the LLM's text becomes an answer. The context of turn n
    is: system, then for every earlier turn `user` `assistant` `answer`, then `user` and `assistant` of this turn. The
    model adds BOS in front, once."""

    name: str
    system: str
    user: str  # one question, `{text}` holds the images and the words
    assistant: str  # opens the answer; the last thing the LLM reads
    answer: str  # `{text}`: a finished answer, as read in later turns
    stop: tuple[str, ...]  # generation of a row ends when its text contains one of these; the first ends an answer
    drop_leading_ids: tuple[int, ...] = ()  # dropped in this order, once each, where ids begin so
    keep_after: str = ""  # when the LLM writes this, only what follows the last one is the answer
    past: str = ""  # opens an answer in later turns, where that is not `assistant` (Qwen3: no thoughts are kept)
    special_in_texts: bool = False  # the tokenizer's special tokens count in questions, answers and captions too
    training: str = ""  # stands around an instruction in training, `{}`, where that is not the chat's first turn

    @property
    def prompt_template(self) -> str:
        """Training's form of an instruction `{}`."""
        return self.training or self.system + self.user.replace("{text}", "{}") + self.assistant

    @property
    def end_sym(self) -> str:
        """What follows an answer in training: up to where the chat stops."""
        before, stop, _ = self.answer.partition("{text}")[2].partition(self.stop[0])
        return before + stop if stop else self.stop[0]

    def clean_ids(self, ids: list[int]) -> list[int]:
        for unwanted in self.drop_leading_ids:
            if ids and ids[0] == unwanted:
                ids = ids[1:]
        return ids

    def clean_text(self, text: str, eos: str | None = None) -> str:
        """Decoded text -> answer: cut at the first stop string, keep what follows the last `keep_after`. A trailing
        `eos` goes too; the original left `</s>` in the answer, and so in the next prompt."""
        for mark in self.stop:
            text = text.split(mark, 1)[0]
        if self.keep_after:
            text = text.rsplit(self.keep_after, 1)[-1]
        text = text.strip()
        while eos and text.endswith(eos):
            text = text.removesuffix(eos).rstrip()
        return text


@dataclass
class Turn:
    """One question, the images uploaded for it, and its answer."""

    question: str
    images: list[Any] = field(default_factory=list)  # encoded, (Q, D_llm) each
    answer: str | None = None


@dataclass
class ChatState:
    """One conversation."""

    template: Conversation
    turns: list[Turn] = field(default_factory=list)
    pending: list[Any] = field(default_factory=list)  # images that go with the next question
    notices: list[str] = field(default_factory=list)  # about the last answer, for people to read

    @property
    def waiting(self) -> bool:
        """Whether the last question has no answer yet."""
        return bool(self.turns) and self.turns[-1].answer is None

    def take_back(self) -> None:
        """Undo an `ask` that got no answer: its images wait for the next question again."""
        if self.waiting:
            self.pending = self.turns.pop().images + self.pending

    def forget_oldest(self) -> None:
        """Drop the oldest turn. Its images move to the next turn: a chat about an image keeps the image."""
        dropped = self.turns.pop(0)
        self.turns[0].images = dropped.images + self.turns[0].images

    def segments(self, as_text: Callable[[str], str] = str) -> list[Any]:
        """The context as texts and images in turn. `as_text` is applied to questions and answers only."""
        form = self.template
        parts: list[Any] = [form.system]
        before, after = form.user.split("{text}")
        for turn in self.turns:
            parts.append(before)
            for image in turn.images:
                parts += [IMAGE_BEFORE, image, IMAGE_AFTER]
            parts.append(as_text(turn.question) + after)
            if turn.answer is None:
                parts.append(form.assistant)
            else:
                parts.append((form.past or form.assistant) + form.answer.replace("{text}", as_text(turn.answer)))
        joined: list[Any] = []
        for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
            run = list(group)
            joined += filter(None, ["".join(run)]) if is_text else run
        return joined

    def prompt(self) -> str:
        """The context as people read it, `<ImageHere>` for every image. Not for the model: see `segments`."""
        return "".join(part if isinstance(part, str) else IMAGE_MARK for part in self.segments())


for _name, _form in tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8")).items():
    _values = {key: tuple(value) if isinstance(value, list) else value for key, value in _form.items()}
    CONVERSATIONS.register(_name)(Conversation(_name, **_values))
VICUNA_V0, CHATML = CONVERSATIONS.get("vicuna_v0"), CONVERSATIONS.get("chatml")

EXAMPLE_QUESTIONS = (  # that the demo page offers
    "Describe this image in detail.",
    "What is unusual about this picture?",
    "Write a short poem about this image.",
    "Explain why this meme is funny.",
    "Help me draft a professional advertisement for this.",
    "How should I make something like this?",
)
DEFAULT_QUESTION = EXAMPLE_QUESTIONS[0]
