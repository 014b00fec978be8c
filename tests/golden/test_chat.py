"""Chat against the original's numbers: prompts, context embeddings, logits of every step, greedy ids."""

import numpy as np
import pytest
import torch

from minigpt4.conversation.chat import Chat

TOLERANCE = 1e-4
GREEDY = {"do_sample": False, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("chat")


def start(chat: Chat, arrays: dict, question: str):
    conv = chat.new_conversation()
    chat.upload_img(torch.from_numpy(arrays["chat_image"]), conv)
    chat.ask(question, conv)
    return conv


def answer_with_logits(chat: Chat, conv, **options):
    """answer(), and what lm_head said before each token: (steps, V)."""
    seen = []
    hook = chat.model.llama_model.lm_head.register_forward_hook(lambda *a: seen.append(a[2][0, -1].clone()))
    try:
        text, ids = chat.answer(conv, **options)
    finally:
        hook.remove()
    return text, ids, torch.stack(seen).numpy()


def close(ours, theirs) -> bool:
    return np.abs(np.asarray(ours) - theirs).max() < TOLERANCE


def test_image_embedding(tiny_model, arrays):
    chat = Chat(tiny_model, None)
    conv = start(chat, arrays, "q")
    assert close(conv.turns[0].images[0], arrays["image_emb"][0])


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("recorded", ["chat", "chat_unk"])  # in the second, the first answer has an <unk>
def test_two_turns(tiny_model, golden, meta, recorded, reuse):
    arrays = golden(recorded)
    chat = Chat(tiny_model, None, reuse_cache=reuse)
    conv = chat.new_conversation()
    chat.upload_img(torch.from_numpy(arrays["chat_image"]), conv)
    for turn, expected in enumerate(meta[recorded], start=1):
        chat.ask(expected["question"], conv)
        assert conv.prompt() == expected["prompt"]
        context = tiny_model.embed_segments(conv.segments(chat.as_text)).detach()
        assert context.shape[1] == expected["context_len"]
        assert close(context, arrays[f"turn{turn}_context_embs"])

        text, ids, logits = answer_with_logits(chat, conv, **GREEDY)
        assert ids == expected["greedy_ids"] == arrays[f"turn{turn}_greedy_ids"].tolist()
        assert len(logits) == expected["n_forwards"]
        assert close(logits, arrays[f"turn{turn}_step_logits"])
        # the original left the end of the sentence in the answer, and so in the next prompt: this is mended
        assert text == expected["answer_text"].removesuffix("</s>")
        conv.turns[-1].answer = expected["answer_text"]
    if reuse:  # the second turn reads on after the first one's whole prompt
        assert chat.cache.reused >= meta[recorded][0]["context_len"]


def test_mended_second_turn_has_no_eos_text(tiny_model, arrays, meta):
    chat = Chat(tiny_model, None)
    conv = start(chat, arrays, meta["chat"][0]["question"])
    chat.answer(conv, **GREEDY)
    chat.ask("What is near the tree?", conv)
    assert "</s>" in meta["chat"][1]["prompt"]
    assert conv.prompt() == meta["chat"][1]["prompt"].replace("</s>", "")
