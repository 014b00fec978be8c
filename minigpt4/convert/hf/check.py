"""Compare an exported folder with our model on one picture and question: logits and the greedy answer."""

import gc
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Blip2ForConditionalGeneration

from ...common.errors import CheckpointError
from ...conversation.chat import Chat
from ...conversation.prompts import DEFAULT_QUESTION

TOLERANCE = 1e-4  # allowed difference of fp32 logits, times the largest logit where that is above 1
NEW_TOKENS = 20


def picture() -> Image.Image:
    """Coarse noise, so that every image token is different."""
    noise = np.random.default_rng(0).integers(0, 256, (14, 21, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 200))


@torch.no_grad()
def our_answer(model, vis_processor) -> tuple[Tensor, str]:
    """Our logits (T, V) of the prompt, and the greedy answer."""
    chat = Chat(model, vis_processor, model.config.conv_template)
    conv = chat.new_conversation()
    chat.upload_img(picture(), conv)
    chat.ask(DEFAULT_QUESTION, conv)
    logits = model.llama_model(inputs_embeds=model.embed_segments(conv.segments())).logits[0].float()
    return logits, chat.answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS)[0]


@torch.no_grad()
def compare(folder: Path, our_logits: Tensor, our_text: str, exact: bool) -> str:
    """Open the folder with transformers and describe the difference in one sentence.

    Args:
        exact: all weights are stored in fp32; then a difference above TOLERANCE or another text is an error.
    Raises:
        CheckpointError: the folder does not hold the same model.
    """
    theirs = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    question = [{"type": "image"}, {"type": "text", "text": DEFAULT_QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    inputs = processor(images=[picture()], text=[prompt])
    logits = theirs(**inputs).logits[0, :, : our_logits.shape[1]].float()
    greedy = theirs.generation_config
    greedy.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=NEW_TOKENS)
    output = theirs.generate(**inputs, generation_config=greedy, tokenizer=processor.tokenizer)
    del theirs
    gc.collect()
    if logits.shape != our_logits.shape:
        raise CheckpointError(f"the prompt has {len(logits)} tokens in the folder, {len(our_logits)} in our model")
    error, allowed = (logits - our_logits).abs().max().item(), TOLERANCE * max(1.0, our_logits.abs().max().item())
    same_text = processor.answers(output, inputs) == [our_text]
    text = f"the greedy answer of {NEW_TOKENS} tokens was {'the same' if same_text else 'different'}"
    if exact and not (error <= allowed and same_text):
        raise CheckpointError(
            f"opened with transformers, the folder's logits differ by up to {error:.1e} ({allowed:.1e} is allowed), "
            f"and {text}; no folder was written (--no-check writes it without this check)"
        )
    return (
        f"Opened with transformers and compared with the model it was made of, on one picture: "
        f"the logits differ by at most {error:.1e}, {text}."
    )
