"""Texts -> token ids: BOS, the prompt around the image, and the caption."""

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


class Prompting:
    """The part of MiniGPT4 that knows texts. It fills in what the config leaves to conv_template.

    `tokenizer` is None for a model of shapes alone; `vocabulary` is the number of the LLM's embeddings.
    """

    def __init__(self, config: ModelConfig, tokenizer, vocabulary: int):
        self.tokenizer = tokenizer
        self.config = config = with_training_form(config, tokenizer)
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template) if config.prompt_path else []
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
        """Ids of a text, or of each text of a list, without BOS or EOS. `as_text` makes control tokens plain text."""
        return token_ids(self.tokenizer, text)

    def segment_ids(self, segments: Sequence[str | Tensor]) -> list[list[int] | Tensor]:
        """Texts and image embeddings (Q, D_llm) -> ids of each text, and the images as they are.

        Each text is tokenized by itself and gets the tokenizer's leading-space piece, as in the original. BOS goes
        first, unless the first text begins with it (ChatML with `<|im_start|>` as BOS) or there is none.
        """
        parts = [s if isinstance(s, Tensor) else self.token_ids(s) for s in segments]
        bos = self.tokenizer.bos_token_id
        if bos is not None and (isinstance(parts[0], Tensor) or parts[0][:1] != [bos]):
            parts.insert(0, [bos])
        return parts

    def caption_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text and end_sym, cut to max_txt_len tokens."""
        most = self.config.max_txt_len
        # Characters that are sure to be cut off are not tokenized.
        closed = [self.as_text(text[: most * self.longest_token]) + self.config.end_sym for text in texts]
        return [ids[:most] for ids in self.token_ids(closed)] if closed else []

    def prompt_ids(self, samples: dict) -> list[tuple[list[int], list[int]]]:
        """For each sample, the ids of its prompt before and after the image. Samples without one share a drawn one."""
        choices = samples.get("prompts") or self.prompt_list
        drawn = choices[torch.randint(len(choices), ()).item()] if choices else ""
        own = samples.get("prompt") or [None] * len(samples["text_input"])
        template, image = self.config.prompt_template or "{}", f"{IMAGE_BEFORE}{IMAGE_MARK}{IMAGE_AFTER}"
        with_image = [p if p is None or IMAGE_MARK in p else image + p for p in own]
        prompts = [drawn if p is None else template.replace("{}", p) for p in with_image]
        ids = {prompt: self._prompt_ids(prompt) for prompt in set(prompts)}
        return [ids[prompt] for prompt in prompts]

    def _prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """The ids before the image, with BOS, and after it; for an empty prompt (stage 1), BOS alone."""
        if not prompt:
            bos = self.tokenizer.bos_token_id
            return ([] if bos is None else [bos]), []
        start, _, end = (self.config.prompt_template or "{}").partition("{}")
        if prompt.startswith(start) and prompt.endswith(end):  # control tokens are text in the instruction only
            prompt = start + self.as_text(prompt[len(start) : len(prompt) - len(end)]) + end
        *before, after = self.segment_ids(split_prompt(prompt))
        return [*chain(*before)], after


def split_prompt(prompt: str) -> list[str]:
    """The two halves of `prompt` around its one `<ImageHere>`."""
    halves = prompt.split(IMAGE_MARK)
    if len(halves) != 2:
        raise PromptError(f"a prompt needs exactly one {IMAGE_MARK}, this has {len(halves) - 1}: {prompt!r}")
    return halves


def read_prompts(path: str, template: str, key: str = "model.prompt_path") -> list[str]:
    """The lines of a file that hold `<ImageHere>`, each in `template`. `key` names the file in the config."""
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
