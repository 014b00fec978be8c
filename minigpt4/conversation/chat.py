"""Chat: upload images, ask, answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteriaList

from ..common.errors import UserError
from ..processors.image_processors import BrokenImage, decode_image
from .chat_template import conversation_of
from .generation import Decoding, Detokenizer, PrefixCache, StopOnText, no_own_defaults, presentable
from .plain_text import longest_token, text_marker
from .prompts import ChatState, Conversation, Turn


class ChatError(UserError):
    """A question that cannot be answered."""


class ImageError(ChatError):
    """An image that cannot be read."""


class Chat:
    """Conversations about images. One answer is made at a time: threads wait for each other.

    ```
    conv = chat.new_conversation()
    chat.upload_img("cat.jpg", conv)
    chat.ask("Describe this image in detail.", conv)
    text, ids = chat.answer(conv)
    ```

    Args:
        vis_processor: PIL image -> float (3, H, W).
        conv_template: a name in CONVERSATIONS, `auto` (the tokenizer's own chat template), or a Conversation.
        max_context: most tokens of context and answer together; the LLM's own limit counts too.
        reuse_cache: read only what is new in each turn, not the whole conversation (with one beam).
        temperature, repetition_penalty: used when a call names none.
    """

    def __init__(
        self, model, vis_processor, conv_template: str | Conversation = "vicuna_v0", max_context: int = 2000,
        reuse_cache: bool = True, temperature: float = 1.0, repetition_penalty: float = 1.0,
    ):  # fmt: skip
        self.model = model.eval()  # a trained Q-Former has dropout
        self.vis_processor = vis_processor
        self.temperature, self.repetition_penalty = temperature, repetition_penalty
        named = isinstance(conv_template, str)
        self.template = conversation_of(conv_template, model.tokenizer) if named else conv_template
        llm = model.llama_model
        self.as_text = text_marker(model.tokenizer, self.template, llm.get_input_embeddings().num_embeddings)
        own_limit = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
        self.max_context = min(max_context, own_limit or max_context)
        self.decode = Detokenizer(model.tokenizer)
        self.cache = PrefixCache(llm) if reuse_cache else None
        self._longest_token = longest_token(model.tokenizer)
        self._lock = Lock()

    def new_conversation(self) -> ChatState:
        return ChatState(self.template)

    @torch.no_grad()
    def upload_img(self, image: str | os.PathLike | Image.Image | Tensor, conv: ChatState) -> None:
        """Encode an image, for the next question: a file, a PIL image, or a processed tensor (3, H, W) or (1, 3, H, W).
        Raises ImageError."""
        pixels = self._pixels(image)[None]
        with self._lock:
            conv.pending.append(self.model.encode_img(pixels.to(self.model.device))[0])

    def ask(self, text: str, conv: ChatState) -> None:
        """Add a question to `conv`. A question without an answer is replaced; its images stay. Raises ChatError."""
        self.check_question(text)
        conv.take_back()
        conv.turns.append(Turn(text, conv.pending))
        conv.pending = []

    def check_question(self, text: str) -> None:
        """Raise ChatError for a question that is empty, no Unicode, or too long even of the longest tokens."""
        if not text.strip():
            raise ChatError("the question is empty: write one")
        if any("\ud800" <= c <= "\udfff" for c in text):  # tokenizers stop at half a surrogate pair
            raise ChatError("the question is no valid Unicode text: write it anew")
        self._check_length(len(text) // self._longest_token)

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.max_context:
            limit = f"{self.max_context} is the limit for question and answer together"
            raise ChatError(f"the question is too long: it takes {tokens} tokens or more, and {limit}")

    @torch.no_grad()
    def answer(
        self, conv: ChatState, *, seed: int | None = None, stop: Event | None = None,
        on_step: Callable[[list[int]], None] | None = None, **decoding,
    ) -> tuple[str, list[int]]:  # fmt: skip
        """Answer the last question, and write the answer into `conv`.

        Args:
            seed: makes sampling repeatable, without touching the random state of the process.
            stop: set it from another thread to end within a token; what is there becomes the answer.
            on_step: is given the ids so far after each token (with one beam).
            decoding: see Decoding.
        Returns the cleaned text, and the token ids as generated (EOS or stop string included). Raises ChatError:
        nothing was asked, or the question does not fit into the context.
        """
        options = self._decoding(decoding)
        if not conv.waiting:
            raise ChatError("there is no question to answer: ask first")
        with self._lock:
            context, room = self._fit(conv, options.max_new_tokens)
            (ids,) = self._generate([context[0]], options, room, seed, stop, on_step)
            ids = self.template.clean_ids(ids)
            conv.turns[-1].answer = text = self._text(ids)
        return text, ids

    def stream_answer(self, conv: ChatState, *, stop: Event | None = None, **options) -> Iterator[str]:
        """Like `answer`, but yields the text so far after each token that adds to it (with beams all at once). When the
        consumer closes the iterator, generation ends within a token, and what is there becomes the answer."""
        stop, steps, answer = stop or Event(), SimpleQueue(), Future()

        def work() -> None:
            try:
                answer.set_result(self.answer(conv, stop=stop, on_step=steps.put, **options)[0])
            except BaseException as error:
                answer.set_exception(error)
            finally:
                steps.put(None)

        worker = Thread(target=work, name="stream_answer", daemon=True)
        worker.start()
        shown = ""
        try:
            while (ids := steps.get()) is not None:
                text = self._text(self.template.clean_ids(ids), unfinished=True)
                if text != shown:
                    shown = text
                    yield text
        finally:
            if not answer.done():
                stop.set()
            worker.join()
        if answer.result() != shown or not shown:
            yield answer.result()

    @torch.no_grad()
    def answer_batch(
        self, images: Sequence, questions: str | Sequence[str], *, seed: int | None = None, **decoding
    ) -> list[str]:
        """Answer a question about each image, or one about all, in one batch. Greedy answers are those of `answer`."""
        options = self._decoding(decoding)
        questions = [questions] * len(images) if isinstance(questions, str) else list(questions)
        if len(questions) != len(images):
            raise ChatError(f"{len(images)} images but {len(questions)} questions: one each, or one for all")
        for question in questions:
            self.check_question(question)
        if not images:
            return []
        pixels = torch.stack([self._pixels(image) for image in images])
        with self._lock:
            encoded = self.model.encode_img(pixels.to(self.model.device))
            turns = [Turn(question, [image]) for question, image in zip(questions, encoded, strict=True)]
            fitted = [self._fit(ChatState(self.template, [turn]), options.max_new_tokens) for turn in turns]
            rows = self._generate([context[0] for context, _ in fitted], options, min(room for _, room in fitted), seed)
        return [self._text(self.template.clean_ids(ids)) for ids in rows]

    def _decoding(self, options: dict) -> Decoding:
        own = {"temperature": self.temperature, "repetition_penalty": self.repetition_penalty}
        return Decoding(**{**own, **options})

    def _pixels(self, image: str | os.PathLike | Image.Image | Tensor) -> Tensor:
        """Any accepted image -> (3, H, W)."""
        if isinstance(image, Tensor):
            return image.squeeze(0) if image.dim() == 4 else image
        if not isinstance(image, Image.Image):
            image = read_image(image)
        try:
            return self.vis_processor(image)
        except BrokenImage as error:  # a PIL image that nobody has decoded yet
            raise ImageError(f"{getattr(image, 'filename', '') or 'the image'}: {error}") from None

    def _fit(self, conv: ChatState, max_new_tokens: int) -> tuple[Tensor, int]:
        """The context (1, T, D_llm), and how many tokens the answer may have. When both together are more than
        `max_context`, whole old turns are dropped, the oldest first, and `conv.notices` says so; BOS, the system text
        and the images stay. (The original cut off the head, image and all.) A question that is too long by itself
        changes nothing."""

        def tokenize(state: ChatState) -> tuple[list, int]:
            parts = self.model.segment_ids(state.segments(self.as_text))
            return parts, sum(map(len, parts))

        conv.notices.clear()
        images = [image for turn in conv.turns for image in turn.images]
        self._check_length(tokenize(ChatState(conv.template, [Turn(conv.turns[-1].question, images)]))[1])
        asked, (parts, length) = len(conv.turns), tokenize(conv)
        while length + max_new_tokens > self.max_context and len(conv.turns) > 1:
            conv.forget_oldest()
            parts, length = tokenize(conv)
        if dropped := asked - len(conv.turns):
            conv.notices.append(f"The conversation has grown too long: its first turns ({dropped}) are forgotten.")
        room = self.max_context - length
        if room < max_new_tokens:
            conv.notices.append(f"There is room for an answer of {room} tokens only.")
        return self.model.embed_parts(parts), min(room, max_new_tokens)

    def _generate(
        self, contexts: list[Tensor], options: Decoding, room: int, seed: int | None, stop=None, on_step=None
    ) -> list[list[int]]:
        """contexts (T, D_llm), of any lengths -> the new ids of each."""
        llm, tokenizer = self.model.llama_model, self.model.tokenizer
        ones = [torch.ones(len(context), dtype=torch.long, device=context.device) for context in contexts]
        # Padded on the left: all rows go on from the same place.
        embeds, mask = (pad_sequence(rows, batch_first=True, padding_side="left") for rows in (contexts, ones))
        eos = end_ids(llm, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(eos), 0)
        stopping = StopOnText(self.decode, self.template.stop, stop, on_step if options.num_beams == 1 else None)
        # As a processor the penalty sees all new tokens. `generate` itself, given embeddings, would spare as many of
        # them as the row has padding.
        penalty = options.repetition_penalty
        processors = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
        reuse = self.cache is not None and len(embeds) == 1 and options.num_beams == 1
        past = {"past_key_values": self.cache.take(embeds)} if reuse else {}
        gpus = [embeds.device] if embeds.is_cuda else []
        with torch.random.fork_rng(gpus, enabled=seed is not None), no_own_defaults(llm):
            if seed is not None:
                torch.manual_seed(seed)
            out = llm.generate(
                inputs_embeds=embeds, attention_mask=mask, generation_config=options.to_config(room, eos, pad),
                logits_processor=LogitsProcessorList(processors), stopping_criteria=StoppingCriteriaList([stopping]),
                **past,
            )  # fmt: skip
        rows = [stopping.cut(row, eos) for row in out.sequences.tolist()]
        if reuse:
            self.cache.keep(embeds, rows[0], out.past_key_values)
        return rows

    def _text(self, ids: list[int], unfinished: bool = False) -> str:
        text = self.decode(ids)
        text = presentable(text, self.template.stop) if unfinished else text
        return self.template.clean_text(text, self.model.tokenizer.eos_token)


def read_image(path: str | os.PathLike) -> Image.Image:
    """The image of a file, decoded to RGB. Raises ImageError."""
    try:
        return decode_image(Path(path).read_bytes(), path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    except BrokenImage as error:
        raise ImageError(str(error)) from None


def end_ids(llm, tokenizer) -> set[int]:
    """Every token id that ends an answer: the LLM's own and the tokenizer's EOS."""
    ids = llm.generation_config.eos_token_id
    found = set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return (found | {tokenizer.eos_token_id}) - {None, -1}
