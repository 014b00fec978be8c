"""What a golden set's meta.json tells beside the arrays: schedules, cleaned captions, prompts, stops, answers.

A set may lack any of them. Where ours is mended (docs/decisions.md), the original's value is mended before comparing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..common.optims import linear_warmup_cosine_lr
from ..common.registry import PROCESSORS
from ..conversation.chat import Chat
from ..conversation.generation import Decoding
from ..conversation.prompts import VICUNA_V0

# meta's `lr` tables were made with the published configs' schedules: (steps of an epoch, schedule).
SCHEDULES = {
    "stage1": (5000, dict(total_steps=20000, init_lr=1e-4, min_lr=8e-5, warmup_lr=1e-6, warmup_steps=5000)),
    "stage2": (200, dict(total_steps=1000, init_lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=200)),
}


def facts(model, meta: dict, chat_image: Tensor | None, context: Tensor | None) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, the original's), to be equal.

    Args:
        chat_image: (3, H, W), the picture of the set's chat.
        context: (1, T, D_llm), what its LLM was fed in the first turn.
    """
    for stage, (epoch_steps, schedule) in SCHEDULES.items():
        for epoch, iteration, rate in meta.get("lr", {}).get(stage, []):
            ours = linear_warmup_cosine_lr(epoch * epoch_steps + iteration, **schedule)
            yield f"lr.{stage}", f"{ours:.10e}", f"{rate:.10e}"
    clean = PROCESSORS.get("blip_caption")()
    for raw, wanted in meta.get("caption_processor", []):
        yield "caption_processor", clean(raw), wanted
    for text, ids in meta.get("tokenizer", {}).get("ids_for_hashes", {}).items():
        yield "tokenizer.ids_for_hashes", model.token_ids(text), ids
    if "saved_checkpoint" in meta:
        weights = {k: v[0] for k, v in meta["saved_checkpoint"]["model_keys"].items() if k.startswith("llama_proj.")}
        yield "saved_checkpoint", {k: list(v.shape) for k, v in model.trained_state().items()}, weights
    chat = Chat(model, None)
    for case in meta.get("post_processing", []):
        ids = chat.template.clean_ids(case["generated"])
        yield "post_processing", (ids, chat._text(ids)), (case["returned_ids"], case["answer"].removesuffix("</s>"))
    if "conversation" in meta:
        conv = chat.new_conversation()
        conv.pending = [torch.zeros(1, model.llama_proj.out_features, device=model.device)]
        for name, question in (("turn1", "q1"), ("turn2", "q2")):
            chat.ask(question, conv)
            yield f"conversation.{name}", conv.prompt(), meta["conversation"][name]
            conv.turns[-1].answer = "a1"
    for case in meta.get("chat_stop", []) if chat_image is not None else ():
        # The original's stops are ids; ours are their text, and end at the same token.
        stop = tuple(model.tokenizer.decode(ids) for ids in case["stops"])
        stopping = Chat(model, None, replace(VICUNA_V0, stop=stop))
        conv = stopping.new_conversation()
        stopping.upload_img(chat_image, conv)
        stopping.ask(meta["chat"][0]["question"], conv)
        _, ids = stopping.answer(conv, do_sample=False, max_new_tokens=20)
        yield "chat_stop", (ids, VICUNA_V0.clean_text(stopping.decode(ids))), (case["ids"], case["text"])
    for case in meta.get("chat_trim", []) if context is not None else ():
        # The original cut off the head, BOS and image too; ours drops whole turns. Compared is the answer to the rest.
        rest = context[:, -case["context_len_fed"] :].to(model.device)
        mask = torch.ones(rest.shape[:2], dtype=torch.long, device=model.device)
        greedy = Decoding(do_sample=False, max_new_tokens=case["max_new_tokens"])
        (ids,) = chat._generate(rest, mask, greedy, case["max_new_tokens"], None)
        yield "chat_trim", (ids, chat._text(ids)), (case["ids"], case["text"])
