"""Chat: upload images, ask, answer. It is handed the model; it knows nothing of configs or pages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from ..common.errors import UserError
from ..processors.image_processors import BrokenImage, decode_image
from .chat_template import conversation_of
from .generation import Decoding, Detokenizer, PrefixCache, StopOnText, TokenStream, no_own_defaults, presentable
from .plain_text import longest_token, text_marker
from .prompts import ChatState, Conversation, Turn


class ChatError(UserError):
    """Something in a conversation that cannot work."""


class ImageError(ChatError):
    """An image that cannot be read."""


class Chat:
    """Conversations about images.

    ```
    conv = chat.new_conversation()
    chat.upload_img("cat.jpg", conv)
    chat.ask("Describe this image in detail.", conv)
    text, ids = chat.answer(conv)
    ```

    Args:
        model: MiniGPT4, or what has `tokenizer`, `llama_model`, `device`, `encode_img`, `segment_ids`,
            `embed_parts`.
        vis_processor: PIL image -> float (3, H, W).
        conv_template: a name in CONVERSATIONS, `auto` (the tokenizer's own chat template), or a Conversation.
        temperature, repetition_penalty: what is used when a call names none.
        max_context: most tokens of context and answer together; the LLM's own limit counts too.
        reuse_cache: read only what is new in each turn (one beam only), instead of the whole conversation.

    One answer is made at a time: threads wait for each other.
    """

    def __init__(
        self,
        model,
        vis_processor,
        conv_template: str | Conversation = "vicuna_v0",
        max_context: int = 2000,
        reuse_cache: bool = True,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
    ):
        self.model = model.eval()  # a trained Q-Former has dropout
        self.vis_processor = vis_processor
        self.temperature, self.repetition_penalty = temperature, repetition_penalty
        named = isinstance(conv_template, str)
        self.template = conversation_of(conv_template, model.tokenizer) if named else conv_template
        llm = model.llama_model
        self.as_text = text_marker(model.tokenizer, self.template, llm.get_input_embeddings().num_embeddings)
        self.longest_token = longest_token(model.tokenizer)
        own_limit = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
        self.max_context = min(max_context, own_limit or max_context)
        self.decode = Detokenizer(model.tokenizer)
        self.cache = PrefixCache(llm) if reuse_cache else None
        self._lock = Lock()

    def new_conversation(self) -> ChatState:
        return ChatState(self.template)

    # ------------------------------------------------------------------ asking

    @torch.no_grad()
    def upload_img(self, image: str | os.PathLike | Image.Image | Tensor, conv: ChatState) -> None:
        """Encode an image, once; it is shown to the LLM right before the next question.

        Args:
            image: a path, a PIL image, or a tensor (3, H, W) or (1, 3, H, W) that is already processed.
            conv: may get several images, before one question or between questions.
        Raises:
            ImageError: the file is missing, broken, or no image.
        """
        pixels = self._pixels(image)[None]
        with self._lock:
            conv.pending.append(self.model.encode_img(pixels.to(self.model.device))[0])

    def ask(self, text: str, conv: ChatState) -> None:
        """Put a question. A question that never got an answer is replaced; its images stay.

        Raises:
            ChatError: the question is empty, or sure to be too long.
        """
        self.check_question(text)
        conv.take_back()
        conv.turns.append(Turn(text, conv.pending))
        conv.pending = []

    def check_question(self, text: str) -> None:
        """Raises ChatError for a question that is empty, no Unicode, or of too many characters, whatever its tokens."""
        if not text.strip():
            raise ChatError("the question is empty: write one")
        if any("\ud800" <= c <= "\udfff" for c in text):  # tokenizers stop at half a surrogate pair
            raise ChatError("the question is no valid Unicode text: write it anew")
        if (tokens := len(text) // self.longest_token) >= self.max_context:
            raise self._too_long(f"at least {tokens} tokens")

    def _too_long(self, tokens: str) -> ChatError:
        return ChatError(
            f"the question is too long: it takes {tokens}, "
            f"and {self.max_context} is the limit for question and answer together"
        )

    # --------------------------------------------------------------- answering

    def answer(
        self, conv: ChatState, *, seed: int | None = None, stop: Event | None = None, **decoding
    ) -> tuple[str, list[int]]:
        """Answer the last question, and note the answer in `conv`.

        Args:
            seed: makes sampling repeatable, without touching the random state of the process.
            stop: set it from another thread to end within a token; what is there becomes the answer.
            decoding: see Decoding (max_new_tokens=300, num_beams=1, temperature=1.0, do_sample=True, ...).
        Returns:
            the cleaned text, and the token ids as generated (EOS or stop string included).
        Raises:
            ChatError: nothing was asked, or the question alone does not fit into the context.
        """
        return self._answer(conv, self._decoding(decoding), seed, [stop] if stop else [])

    def stream_answer(
        self, conv: ChatState, *, seed: int | None = None, stop: Event | None = None, **decoding
    ) -> Iterator[str]:
        """Like `answer`, but yields the text so far after each token that adds to it; the last is the answer.

        Beams cannot stream: with num_beams > 1 the answer comes at once. When the consumer closes the
        iterator (or leaves its loop), generation ends within a token, and what is there becomes the answer.
        """
        options = self._decoding(decoding)
        abandoned, tokens, outcome = Event(), SimpleQueue(), []

        def work() -> None:
            try:
                events = [abandoned, stop] if stop else [abandoned]
                outcome.append(self._answer(conv, options, seed, events, tokens.put)[0])
            except BaseException as error:  # raised again where the text is read
                outcome.append(error)
            finally:
                tokens.put(None)

        worker = Thread(target=work, name="stream_answer", daemon=True)
        worker.start()
        ids, shown = [], ""
        try:
            while (token := tokens.get()) is not None:
                ids.append(token)
                text = self._unfinished(ids)
                if text != shown:
                    shown = text
                    yield text
        finally:
            abandoned.set()
            worker.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        if outcome[0] != shown or not shown:
            yield outcome[0]

    @torch.no_grad()
    def answer_batch(
        self, images: Sequence, questions: str | Sequence[str], *, seed: int | None = None, **decoding
    ) -> list[str]:
        """One question about each image, all at once: B rows, each of which stops by itself.

        Args:
            images: B images as for `upload_img`; a memory-sized batch is the caller's business.
            questions: one for all, or one for each.
        Returns:
            B cleaned answers; greedy ones equal those of `answer`, row by row.
        """
        options = self._decoding(decoding)
        questions = [questions] * len(images) if isinstance(questions, str) else list(questions)
        if len(questions) != len(images):
            raise ChatError(f"{len(images)} images but {len(questions)} questions: one each, or one for all")
        if not images:
            return []
        for question in questions:
            self.check_question(question)
        pixels = torch.stack([self._pixels(image) for image in images])
        with self._lock:
            encoded = self.model.encode_img(pixels.to(self.model.device))
            fitted = []
            for image, question in zip(encoded, questions, strict=True):
                conv = self.new_conversation()
                conv.pending.append(image)
                self.ask(question, conv)
                fitted.append(self._fit(conv, options.max_new_tokens))
            contexts = [context for context, _ in fitted]
            lengths = [context.shape[1] for context in contexts]
            embeds = contexts[0].new_zeros(len(contexts), max(lengths), contexts[0].shape[2])
            mask = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            for row, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
                embeds[row, -length:] = context[0]  # padded on the left: all rows go on from the same place
                mask[row, -length:] = 1
            rows = self._generate(embeds, mask, options, min(room for _, room in fitted), seed)
        return [self._text(self.template.clean_ids(ids)) for ids in rows]

    # ------------------------------------------------------------------ inside

    def _decoding(self, options: dict) -> Decoding:
        own = {"temperature": self.temperature, "repetition_penalty": self.repetition_penalty}
        return Decoding(**{**own, **options})

    def _pixels(self, image) -> Tensor:
        """Any accepted image -> (3, H, W)."""
        if isinstance(image, Tensor):
            return image.squeeze(0) if image.dim() == 4 else image
        if not isinstance(image, Image.Image):
            image = read_image(image)
        try:
            return self.vis_processor(image)
        except BrokenImage as error:  # a PIL image that nobody has decoded yet
            raise ImageError(f"{getattr(image, 'filename', '') or 'the image'}: {error}") from None

    @torch.no_grad()
    def _answer(self, conv, options: Decoding, seed, events, put_token=None) -> tuple[str, list[int]]:
        if not conv.waiting:
            raise ChatError("there is no question to answer: ask first")
        with self._lock:
            context, room = self._fit(conv, options.max_new_tokens)
            mask = torch.ones(context.shape[:2], dtype=torch.long, device=context.device)
            (ids,) = self._generate(context, mask, options, room, seed, events, put_token)
            ids = self.template.clean_ids(ids)
            text = self._text(ids)
            conv.turns[-1].answer = text
        return text, ids

    def _fit(self, conv: ChatState, max_new_tokens: int) -> tuple[Tensor, int]:
        """The context (1, T, D_llm), and how many tokens the answer may have.

        When both are more than `max_context` together, whole old turns go, the oldest first; BOS, the system
        text and the images stay. `conv.notices` says so. (The original cut off the head, image and all.)

        Tokens are counted before they are embedded. A question that is too long by itself changes nothing.
        """
        conv.notices.clear()
        images = [image for turn in conv.turns for image in turn.images]
        alone = self._count(ChatState(conv.template, [Turn(conv.turns[-1].question, images)]))[1]
        if alone >= self.max_context:
            raise self._too_long(f"{alone} tokens with its images")
        dropped = 0
        while True:
            parts, length = self._count(conv)
            room = self.max_context - length
            if room >= max_new_tokens or len(conv.turns) == 1:
                break
            conv.forget_oldest()
            dropped += 1
        if dropped:
            turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            conv.notices.append(f"The conversation has grown too long: {turns} no longer remembered.")
        if room < max_new_tokens:
            conv.notices.append(f"There is room for an answer of {room} tokens only.")
        return self.model.embed_parts(parts), min(room, max_new_tokens)

    def _count(self, conv: ChatState) -> tuple[list, int]:
        """The conversation as `segment_ids` gives it, and how many tokens that are."""
        parts = self.model.segment_ids(conv.segments(self.as_text))
        return parts, sum(map(len, parts))

    def _generate(
        self, embeds: Tensor, mask: Tensor, options: Decoding, room: int, seed, events=(), put_token=None
    ) -> list[list[int]]:
        """embeds (B, T, D_llm), padded on the left where mask (B, T) is 0 -> the new ids of each row."""
        llm, tokenizer = self.model.llama_model, self.model.tokenizer
        eos = end_ids(llm, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(eos), 0)
        stopping = StopOnText(self.decode, self.template.stop, events)
        extra = {}
        if put_token and options.num_beams == 1:
            extra["streamer"] = TokenStream(put_token)
        reuse = self.cache is not None and len(embeds) == 1 and options.num_beams == 1
        if reuse:
            extra["past_key_values"] = self.cache.take(embeds)
        with seeded(seed, embeds.device), no_own_defaults(llm):
            out = llm.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=options.to_config(room, eos, pad),
                logits_processor=options.processors(),
                stopping_criteria=StoppingCriteriaList([stopping]),
                **extra,
            )
        rows = [stopping.cut(row, eos) for row in out.sequences.tolist()]
        if reuse:
            self.cache.keep(embeds, rows[0], out.past_key_values)
        return rows

    def _text(self, ids: list[int]) -> str:
        return self.template.clean_text(self.decode(ids), self.model.tokenizer.eos_token)

    def _unfinished(self, ids: list[int]) -> str:
        text = presentable(self.decode(self.template.clean_ids(ids)), self.template.stop)
        return self.template.clean_text(text, self.model.tokenizer.eos_token)


def read_image(path: str | os.PathLike) -> Image.Image:
    """The image of a file, decoded to RGB. Raises ImageError."""
    try:
        return decode_image(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: this is a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    except BrokenImage as error:
        raise ImageError(str(error)) from None


def end_ids(llm, tokenizer) -> set[int]:
    """Every token id that ends an answer: the LLM's own and the tokenizer's EOS."""
    ids = llm.generation_config.eos_token_id
    found = set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return (found | {tokenizer.eos_token_id}) - {None, -1}


@contextmanager
def seeded(seed: int | None, device: torch.device):
    """Run with torch's random state seeded, and put it back afterwards; `None` leaves it alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
