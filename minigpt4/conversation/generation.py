"""Around transformers' `generate`: decoding options, token ids to text, stop strings, the reused prefix."""

import codecs
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass, fields
from threading import Event

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria

from ..common.errors import UserError
from ..common.schema import in_range, key


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded. The defaults are those of the original's demo (`top_k` was transformers' own then)."""

    max_new_tokens: int = key(300, "longest answer", least=1)
    num_beams: int = key(1, "beams of the search", least=1)
    min_length: int = key(1, "n asks for n - 1 tokens: the original's output began with BOS")
    top_p: float = key(0.9, "nucleus sampling", above=0, most=1)
    top_k: int = key(50, "of the most likely tokens; 0: all", least=0)
    repetition_penalty: float = key(1.0, "over the answer so far, never over the prompt", above=0)
    length_penalty: float = key(1.0, "beams only")
    temperature: float = key(1.0, "of the sampling; greedy is do_sample=False", above=0)
    do_sample: bool = key(True, "False: greedy, or plain beam search")

    def __post_init__(self):
        for option in fields(self):
            value, about = getattr(self, option.name), option.metadata
            if not in_range(value, about):
                raise UserError(f"{option.name} is {value}: it must be {about['range']} ({about['doc']})")

    def to_config(self, max_new_tokens: int, eos: Collection[int], pad: int) -> GenerationConfig:
        """For `generate`: at most `max_new_tokens`; the tokens of `eos` end a row, and `pad` fills it."""
        options = {}
        if self.do_sample:
            options = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.num_beams > 1:
            options["length_penalty"] = self.length_penalty
        if self.min_length > 1:
            options["min_new_tokens"] = min(self.min_length - 1, max_new_tokens)
        return GenerationConfig(
            do_sample=self.do_sample, num_beams=self.num_beams, max_new_tokens=max_new_tokens, pad_token_id=pad,
            eos_token_id=list(eos) or None, return_dict_in_generate=True, **options,
        )  # fmt: skip


@contextmanager
def no_own_defaults(llm):
    """Hide the LLM folder's generation_config.json: `generate` takes from it what a call leaves open."""
    own, llm.generation_config = llm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        llm.generation_config = own


# A wrong byte is one U+FFFD, and the next byte has its own chance.
codecs.register_error("one_by_one", lambda error: ("\ufffd", error.start + 1))


class Detokenizer:
    """Token ids -> text, special tokens included. Vocabularies with byte tokens (`<0x0A>`; LLaMA's) are decoded here,
    as sentencepiece and the original did: transformers 5 turns a whole run of bytes into U+FFFD when one of them is no
    UTF-8, LLaMA's newline included."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        names = {f"<0x{value:02X}>": bytes([value]) for value in range(256)}
        self.bytes = {vocabulary[name]: value for name, value in names.items() if name in vocabulary}
        self.special = {i: tokenizer.decode([i]).strip().encode() for i in tokenizer.all_special_ids}

    def __call__(self, ids: list[int]) -> str:
        if not self.bytes:
            return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text, run = b"", b""
        for i, piece in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True):
            if i in self.special:
                # the blank is transformers 4's; it survives only between two special tokens
                text += (b" " + run.removeprefix(b" ") if run else b"") + self.special[i]
                run = b""
            else:
                run += self.bytes.get(i) or piece.replace("▁", " ").encode()
        return (text + run.removeprefix(b" ")).decode(errors="one_by_one")


class StopOnText(StoppingCriteria):
    """Ends each row by itself once its text has a stop string, whatever tokens spell it (transformers' own
    StopStringCriteria sees it only where the text ends with it); `event` ends all rows. `on_step` is given the new ids
    of the first row after each step."""

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Collection[str], event: Event | None = None,
        on_step: Callable[[list[int]], None] | None = None,
    ):  # fmt: skip
        self.decode, self.stop, self.event, self.on_step = decode, stop, event, on_step
        # A token spells at least one byte; one more, because some decoders strip a blank off the first token.
        self.window = max((len(mark.encode()) for mark in stop), default=0) + 1

    def found(self, ids: list[int]) -> bool:
        """Whether the end of `ids` holds a stop string."""
        tail = self.decode(ids[-self.window :]) if self.stop else ""
        return any(mark in tail for mark in self.stop)

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        """input_ids (B, T): the new tokens only, as the prompt is given as embeddings. Returns bool (B,)."""
        rows = input_ids.tolist()
        if self.on_step:
            self.on_step(rows[0])
        stopped = self.event is not None and self.event.is_set()
        return torch.tensor([stopped or self.found(row) for row in rows], device=input_ids.device)

    def cut(self, ids: list[int], eos: Collection[int]) -> list[int]:
        """A finished row up to and including its EOS or stop string, without the padding that follows."""
        for end in range(1, len(ids) + 1):
            if ids[end - 1] in eos or self.found(ids[:end]):
                return ids[:end]
        return ids


def presentable(text: str, stop: Collection[str]) -> str:
    """Unfinished text that may be shown: without half a character, or the beginning of a stop string."""
    text = text.rstrip("\ufffd")
    for mark in stop:
        begun = (n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n]))
        text = text[: len(text) - next(begun, 0)]
    return text


class PrefixCache:
    """Keys and values of the last context read, so that the next turn reads only what is new. Contexts are compared by
    their embeddings, row by row, for text and images alike."""

    def __init__(self, llm):
        self.llm = llm
        self.clear()

    def clear(self) -> None:
        self._embeds: Tensor | None = None  # (T, D_llm), what `_cache` has read
        self._cache: DynamicCache | None = None
        self.reused = 0  # tokens of the last context that were not read again

    def take(self, context: Tensor) -> DynamicCache:
        """The cache to read `context` (1, T, D_llm) with: it holds its longest known prefix, T - 1 at most. It is no
        longer held here; give it back with `keep` when nothing went wrong."""
        embeds, cache = self._embeds, self._cache
        self.clear()
        if getattr(cache, "is_croppable", False):
            size = min(len(embeds), context.shape[1] - 1)  # `generate` needs one new row at least
            same = (embeds[:size] == context[0, :size]).all(dim=1)
            self.reused = int(same.long().cumprod(0).sum())
        if not self.reused:
            return DynamicCache(config=self.llm.config)
        cache.crop(self.reused - cache.get_seq_length())  # minus the number of rows to remove
        return cache

    def keep(self, context: Tensor, ids: list[int], cache: DynamicCache) -> None:
        """Remember `cache` after it read `context` and wrote `ids` (the last of them is not read yet)."""
        answer = self.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=context.device))
        self._embeds = torch.cat([context[0], answer.to(context.dtype)])[: cache.get_seq_length()].detach()
        self._cache = cache
