"""A training batch, laid out on the CPU: token ids become the tensors that one forward needs.

Notation for shapes: B batch, Q image tokens, S sequence length with padding, M target tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import UserError
from ..conversation.prompts import IMAGE_MARK


class PromptError(UserError):
    """A prompt that cannot take an image, or a batch without anything to train on."""


def split_prompt(prompt: str) -> tuple[str, str]:
    """The halves of `prompt` around its one `<ImageHere>`."""
    if prompt.count(IMAGE_MARK) != 1:
        raise PromptError(f"a prompt needs exactly one {IMAGE_MARK}, this has {prompt.count(IMAGE_MARK)}: {prompt!r}")
    before, after = prompt.split(IMAGE_MARK)
    return before, after


def lay_out_batch(
    prompts: Sequence[tuple[list[int], list[int]]], texts: Sequence[Sequence[list[int]]], image_tokens: int, pad: int
) -> dict[str, Tensor]:
    """Each row is [prompt before, image, prompt after, text], padded on the right.

    Several captions of a row share its image and prompt. Their position ids place each right after the prompt, and a
    mask keeps them from seeing each other, so that each counts as if it had a row of its own.

    Args:
        prompts: of each row, the ids before the image (BOS among them) and after it.
        texts: of each row, the ids of its captions.
        image_tokens: Q.
        pad: padding id. A text token that equals it is no target (source: the original).
    Returns:
        input_ids (B, S), with `pad` in the image's places;
        image_positions (B * Q), those places among all B * S;
        attention_mask (B, S); with several captions in a row (B, 1, S, S), True where attention is allowed;
        position_ids (B, S), only with several captions in a row;
        target_ids (M); target_positions (M), the place among all B * S whose hidden state predicts each;
        tokens, how many positions are no padding.
    Raises:
        PromptError: no text has a target.
    """
    rows = []  # of each row, (id, position, number of its caption or -1 for the prompt)
    images, sources, targets = [], [], []  # places are (row, column) until the length is known
    for row, ((before, after), captions) in enumerate(zip(prompts, texts, strict=True)):
        prefix = [*before, *[pad] * image_tokens, *after]
        images += [(row, len(before) + i) for i in range(image_tokens)]
        tokens = [(token, i, -1) for i, token in enumerate(prefix)]
        for number, caption in enumerate(captions):
            for i, token in enumerate(caption):
                if token != pad:
                    # A caption's first token is predicted by the last position of the prompt.
                    sources.append((row, (len(tokens) if i else len(prefix)) - 1))
                    targets.append(token)
                tokens.append((token, len(prefix) + i, number))
        rows.append(tokens)
    if not targets:
        raise PromptError(
            "no token of this batch is trained on: every text is empty or made of the padding token alone; look at "
            "model.end_sym, model.max_txt_len and the captions"
        )
    length = max(map(len, rows))
    table = torch.tensor([tokens + [(pad, 0, -2)] * (length - len(tokens)) for tokens in rows])
    ids, positions, caption = (column.contiguous() for column in table.unbind(-1))
    batch = {
        "input_ids": ids,
        "image_positions": torch.tensor([row * length + column for row, column in images]),
        "attention_mask": (caption > -2).long(),
        "target_positions": torch.tensor([row * length + column for row, column in sources]),
        "target_ids": torch.tensor(targets),
        "tokens": sum(map(len, rows)),
    }
    if max(map(len, texts)) > 1:
        seen = (caption[:, :, None] == caption[:, None, :]) | (caption == -1)[:, None, :]
        batch |= {"attention_mask": seen.tril()[:, None], "position_ids": positions}
    return batch


def full_labels(batch: dict[str, Tensor]) -> Tensor:
    """The original's labels (B, S) of a batch with one caption a row: -100 where nothing is predicted."""
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["target_positions"] + 1] = batch["target_ids"]
    return labels


def to_device(batch: dict, device: torch.device) -> dict:
    """Every tensor of `batch` on `device`. The host does not wait for copies to a GPU."""

    def move(tensor: Tensor) -> Tensor:
        pageable = device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned()
        return (tensor.pin_memory() if pageable else tensor).to(device, non_blocking=True)

    return {key: move(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
