"""Token ids -> the tensors of one forward, on the CPU.

Notation for shapes: B batch, Q image tokens, S sequence length with padding, M target tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import UserError


class PromptError(UserError):
    """A prompt that cannot take an image, or a batch without anything to train on."""


def lay_out_batch(
    prompts: Sequence[tuple[list[int], list[int]]], texts: Sequence[list[int]], image_tokens: int, pad: int
) -> dict[str, Tensor]:
    """Each row is [prompt before, image, prompt after, text], padded on the right.

    Args:
        prompts: for each row, the ids before the image (with BOS) and after it.
        texts: for each row, the ids of its text.
        image_tokens: Q.
        pad: padding id. A text token that equals it is no target (source: the original).
    Returns:
        input_ids (B, S), with `pad` at the image tokens; attention_mask (B, S);
        image_positions (B * Q), indices of the image tokens among all B * S positions;
        target_ids (M); target_positions (M), where each is predicted: one before it, among all B * S positions;
        real_positions (T), what is no padding, among all B * S positions; tokens, their number.
    Raises:
        PromptError: no text has a target.
    """
    prefixes = [[*before, *[pad] * image_tokens, *after] for before, after in prompts]
    rows = [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]
    length = max(map(len, rows))
    images, sources, targets, real = [], [], [], []
    for row, ((before, _), prefix, text) in enumerate(zip(prompts, prefixes, texts, strict=True)):
        real += range(row * length, row * length + len(rows[row]))
        images += [row * length + len(before) + i for i in range(image_tokens)]
        first = row * length + len(prefix) - 1  # the position before the text predicts its first token
        sources += [first + i for i, token in enumerate(text) if token != pad]
        targets += [token for token in text if token != pad]
    if not targets:
        raise PromptError(
            "no token of this batch is trained on: every text is empty or made of the padding token alone; look at "
            "model.end_sym, model.max_txt_len and the captions"
        )
    return {
        "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        "image_positions": torch.tensor(images),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "target_positions": torch.tensor(sources),
        "target_ids": torch.tensor(targets),
        "real_positions": torch.tensor(real),
        "tokens": len(real),
    }


def full_labels(batch: dict[str, Tensor]) -> Tensor:
    """The original's labels (B, S): -100 where nothing is predicted."""
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["target_positions"] + 1] = batch["target_ids"]
    return labels


def to_device(batch: dict, device: torch.device) -> dict:
    """Move the tensors of a batch. The host does not wait for copies to a GPU."""

    def move(tensor: Tensor) -> Tensor:
        pageable = device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned()
        return (tensor.pin_memory() if pageable else tensor).to(device, non_blocking=True)

    return {key: move(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
