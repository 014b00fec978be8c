"""Does the folder say what our model says? One picture, one question: logits of the prompt and a greedy answer."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Blip2ForConditionalGeneration

from ...common.errors import CheckpointError
from ...common.schema import Config
from ...conversation.chat import Chat
from ...conversation.prompts import DEFAULT_QUESTION

TOLERANCE = 1e-4  # of logits, where all is fp32; of the largest logit, where that is more than 1
NEW_TOKENS = 20


@dataclass(frozen=True)
class OurAnswer:
    logits: Tensor  # (T, V) of the prompt
    ids: list[int]  # greedy, as generated
    text: str
    all_fp32: bool


def picture() -> Image.Image:
    """Colours that run across, and a circle of noise: nothing to see, but no token like another."""
    y, x = np.mgrid[:200, :300]
    noise = np.random.default_rng(0).integers(0, 256, (200, 300))
    inside = (x - 150) ** 2 + (y - 100) ** 2 < 60**2
    return Image.fromarray(np.stack([x * 255 // 300, y * 255 // 200, np.where(inside, noise, 90)], -1).astype(np.uint8))


@torch.no_grad()
def our_answer(model, vis_processor, config: Config) -> OurAnswer:
    chat = Chat(model, vis_processor, config.model.conv_template)
    conv = chat.new_conversation()
    chat.upload_img(picture(), conv)
    chat.ask(DEFAULT_QUESTION, conv)
    context = model.embed_segments(conv.segments())
    logits = model.llama_model(inputs_embeds=context).logits[0].float()
    text, ids = chat.answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return OurAnswer(logits, ids, text, dtypes == {torch.float32})


@torch.no_grad()
def compare(folder: Path, ours: OurAnswer, exact: bool) -> str:
    """Open the folder as anyone would, and say in one sentence how it differs.

    Args:
        exact: stored in fp32 throughout; then a difference past TOLERANCE, or another text, is an error.
    Raises:
        CheckpointError: the folder does not hold the same model.
    """
    theirs = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    question = [{"type": "image"}, {"type": "text", "text": DEFAULT_QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    inputs = processor(images=[picture()], text=[prompt])
    logits = theirs(**inputs).logits[0, :, : ours.logits.shape[1]].float()
    greedy = theirs.generation_config
    greedy.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=NEW_TOKENS)
    output = theirs.generate(**inputs, generation_config=greedy, tokenizer=processor.tokenizer)
    del theirs
    gc.collect()
    same_text = processor.answers(output, inputs) == [ours.text]
    if logits.shape != ours.logits.shape:
        raise CheckpointError(f"the folder reads {len(logits)} tokens where our model reads {len(ours.logits)}")
    error = (logits - ours.logits).abs().max().item()
    text = f"the greedy answer of {NEW_TOKENS} tokens was {'the same' if same_text else 'another'}"
    allowed = TOLERANCE * max(1.0, ours.logits.abs().max().item())
    if exact and ours.all_fp32 and not (error <= allowed and same_text):
        raise CheckpointError(
            f"opened with transformers, the folder's logits differ by up to {error:.1e} ({allowed:.1e} is allowed), "
            f"and {text}; nothing was kept (--no-check writes it all the same)"
        )
    return (
        f"Opened with transformers and compared with the model it was made of, on one picture: "
        f"the logits differ by at most {error:.1e}, {text}."
    )
