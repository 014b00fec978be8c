"""Texts -> token ids: the prompt around an image, the caption after it, and BOS before all."""

import sys
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from ..common.errors import ConfigError
from ..common.paths import read_text, resolve_path
from ..common.schema import ModelConfig
from ..conversation.chat_template import conversation_of, with_training_form
from ..conversation.plain_text import longest_token, text_marker, token_ids
from ..conversation.prompts import IMAGE_AFTER, IMAGE_BEFORE, IMAGE_MARK
from .batch import PromptError
from .llm import pad_apart_from

KNOWN_PROMPTS = 4096  # prompts whose ids are kept; the questions of a VQA dataset are many more


class Prompting:
    """The text side of MiniGPT4.

    Args:
        config: what it leaves to conv_template (prompt_template, end_sym) is filled in, in the attribute `config`.
        tokenizer: the LLM's; None for a model of shapes alone.
        vocabulary: how many tokens the LLM has embeddings of.
    Raises:
        ConfigError: prompt_path cannot be read; or end_sym is the padding token.
    """

    def __init__(self, config: ModelConfig, tokenizer, vocabulary: int):
        self.tokenizer = tokenizer
        self.config = config = with_training_form(config, tokenizer)
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template) if config.prompt_path else []
        self._known_prompts: dict[str, tuple[list[int], list[int]]] = {}  # prompt -> ids before and after the image
        self.as_text, self.longest_token = str, sys.maxsize
        if tokenizer:
            self.as_text = text_marker(tokenizer, conversation_of(config.conv_template, tokenizer), vocabulary)
            self.longest_token = longest_token(tokenizer)
            if config.pad_token is None:
                pad_apart_from(tokenizer, self.token_ids(config.end_sym))
            if tokenizer.pad_token_id in self.token_ids(config.end_sym):
                raise ConfigError(
                    f"model.end_sym: {config.end_sym!r} is also the padding token, which is never trained on, so "
                    "answers would not learn to end; set model.pad_token to another token of the vocabulary"
                )

    def token_ids(self, text: str | list[str]) -> list:
        """Ids of `text` by itself, without BOS or EOS; of a list, the ids of each text. Control tokens that `as_text`
        marked are text."""
        return token_ids(self.tokenizer, text)

    def segment_ids(self, segments: Sequence[str | Tensor]) -> list[list[int] | Tensor]:
        """Text and images in the order given -> ids of each text, and the images as they are.

        Each text is tokenized by itself, so each gets the tokenizer's own leading-space piece, as in the original. BOS
        goes first, unless the first text already begins with it (ChatML with `<|im_start|>` as BOS) or there is none.

        Args:
            segments: texts, and image embeddings (Q, D_llm).
        """
        parts = [s if isinstance(s, Tensor) else self.token_ids(s) for s in segments]
        bos = self.tokenizer.bos_token_id
        if bos is not None and (isinstance(parts[0], Tensor) or parts[0][:1] != [bos]):
            parts.insert(0, [bos])
        return parts

    def caption_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text and of end_sym after it, cut to max_txt_len tokens."""
        most = self.config.max_txt_len
        # What is sure to be cut off is not tokenized either.
        closed = [self.as_text(text[: most * self.longest_token]) + self.config.end_sym for text in texts]
        return [ids[:most] for ids in self.token_ids(closed)] if closed else []

    def prompt_ids(self, samples: dict) -> list[tuple[list[int], list[int]]]:
        """For each sample of a batch, the ids of its prompt before the image and after it; see `MiniGPT4.build_batch`.

        One instruction is drawn for all samples that bring none of their own.
        """
        choices = samples.get("prompts") or self.prompt_list
        drawn = choices[torch.randint(len(choices), ()).item()] if choices else ""
        own = samples.get("prompt") or [None] * len(samples["text_input"])
        return [self._prompt_ids(drawn if prompt is None else self._in_template(prompt)) for prompt in own]

    def _in_template(self, text: str) -> str:
        """A sample's own instruction, in the model's training template."""
        if IMAGE_MARK not in text:
            text = f"{IMAGE_BEFORE}{IMAGE_MARK}{IMAGE_AFTER}{text}"
        return (self.config.prompt_template or "{}").replace("{}", text)

    def _prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """The ids before the image, BOS first, and after it; of an empty prompt, BOS alone (stage 1)."""
        if prompt not in self._known_prompts:
            image = torch.empty(0)
            before, after = split_prompt(self._with_plain_instruction(prompt)) if prompt else (None, None)
            parts = self.segment_ids([before, image, after] if prompt else [image])
            at = next(i for i, part in enumerate(parts) if part is image)
            if len(self._known_prompts) >= KNOWN_PROMPTS:
                self._known_prompts.clear()
            self._known_prompts[prompt] = [*chain(*parts[:at])], [*chain(*parts[at + 1 :])]
        return self._known_prompts[prompt]

    def _with_plain_instruction(self, prompt: str) -> str:
        """An instruction in `prompt_template`, with its control tokens marked as text."""
        before, _, after = (self.config.prompt_template or "{}").partition("{}")
        if not (prompt.startswith(before) and prompt.endswith(after)):
            return prompt
        return before + self.as_text(prompt[len(before) : len(prompt) - len(after)]) + after


def split_prompt(prompt: str) -> tuple[str, str]:
    """The halves of `prompt` around its one `<ImageHere>`."""
    if prompt.count(IMAGE_MARK) != 1:
        raise PromptError(f"a prompt needs exactly one {IMAGE_MARK}, this has {prompt.count(IMAGE_MARK)}: {prompt!r}")
    before, after = prompt.split(IMAGE_MARK)
    return before, after


def read_prompts(path: str, template: str, key: str = "model.prompt_path") -> list[str]:
    """The instructions of a file, one a line, each put into `template`; lines without `<ImageHere>` are left out.

    Args:
        key: the key of the config that names the file, for messages.
    """
    try:
        text = read_text(resolve_path(path))
    except OSError as error:
        raise ConfigError(f"{key}: {path} should be a text file of instructions: {error}") from None
    prompts = [template.replace("{}", line.strip()) for line in text.splitlines() if IMAGE_MARK in line]
    if not prompts:
        raise ConfigError(f"{key}: no line of {path} holds {IMAGE_MARK}")
    for prompt in prompts:
        split_prompt(prompt)
    return prompts
