"""Widen the vision tower by one head, so that BLIP-2 computes `ln_vision` exactly.

BLIP-2 in transformers has one epsilon for all vision norms. The original has 1e-6 in the ViT and 1e-5 in `ln_vision`.
With a variance of 1 the difference is in the sixth digit; with a variance near the epsilons it is large. In that case
the vision width grows from D to E = D + D/heads (one more head, of zeros):

- Each layer that writes to the residual stream also writes its mean into the new channels. So the mean of all E
  channels equals the mean of the D channels, and the variance is D/E of theirs. With the epsilon times D/E and the
  norms' weights times sqrt(D/E), every norm in the ViT computes what it did before.
- The last layer adds +c and -c to two new channels, which adds the missing 9e-6 to the variance.

Nothing reads the new channels: the columns that would are zeros. In exact arithmetic this is the same model.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

INNER_EPS, LN_VISION_EPS = 1e-6, 1e-5
NORMS = (".layer_norm1.", ".layer_norm2.", "vision_model.post_layernorm.")


def plain_error(variance: float) -> float:
    """The relative error of ln_vision with the ViT's epsilon, at this variance of its input."""
    return math.sqrt((variance + LN_VISION_EPS) / (variance + INNER_EPS)) - 1


def is_norm(name: str) -> bool:
    return name.startswith("vision_model.") and any(part in name for part in NORMS)


def _wide(name: str, tensor: Tensor, width: int, more: int, last_layer: int) -> Tensor:
    """The wide form of one tensor of the plain layout: `more` channels are added to `width`."""

    def mean_rows(t: Tensor) -> Tensor:  # the rows are channels of the residual stream
        mean = t.double().mean(0, keepdim=True).to(t.dtype)
        return torch.cat([t, mean.expand(more, *t.shape[1:])])

    if name.endswith(("class_embedding", "position_embedding")):  # (1, N, D)
        return mean_rows(tensor.movedim(2, 0)).movedim(0, 2)
    if is_norm(name):
        scale = math.sqrt(width / (width + more)) if name.endswith("weight") else 1
        return F.pad((tensor.double() * scale).to(tensor.dtype), (0, more))
    if ".qkv." in name:
        apart = tensor.unflatten(0, (3, width))
        padding = (0, more) if tensor.ndim == 1 else (0, more, 0, more)
        return F.pad(apart, padding).flatten(0, 1)
    if ".fc1.weight" in name or name.startswith("qformer."):
        return F.pad(tensor, (0, more))
    if ".fc1.bias" in name:
        return tensor
    if ".projection.weight" in name:
        tensor = F.pad(tensor, (0, more))  # nothing uses the new head's output
    tensor = mean_rows(tensor)  # patch_embedding, projection, fc2
    if name == f"vision_model.encoder.layers.{last_layer}.mlp.fc2.bias":
        c = math.sqrt((LN_VISION_EPS - INNER_EPS) * width / 2)
        tensor[width] += c
        tensor[width + 1] -= c
    return tensor


def concerns(name: str) -> bool:
    """Whether this tensor differs in the wide form."""
    reads_vision = ".crossattention.attention.key.weight", ".crossattention.attention.value.weight"
    return name.startswith("vision_model.") or (name.startswith("qformer.") and name.endswith(reads_vision))


def widen(state: dict[str, Tensor], vision: dict) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the vision config of the wide form, from those of the plain layout."""
    width, heads, depth = vision["hidden_size"], vision["num_attention_heads"], vision["num_hidden_layers"]
    more = width // heads
    wide = {k: _wide(k, v, width, more, depth - 1) if concerns(k) else v for k, v in state.items()}
    changed = {
        "hidden_size": width + more,
        "num_attention_heads": heads + 1,
        "layer_norm_eps": INNER_EPS * width / (width + more),
    }
    return wide, vision | changed


def narrow(name: str, tensor: Tensor, width: int) -> Tensor:
    """The plain form of a wide tensor, except norm weights: those are kept in a file of their own."""
    if name.endswith(("class_embedding", "position_embedding")):
        return tensor[..., :width]
    if ".qkv." in name:
        apart = tensor.unflatten(0, (3, -1))[:, :width]
        return (apart if tensor.ndim == 1 else apart[:, :, :width]).flatten(0, 1)
    if ".fc1.weight" in name or name.startswith("qformer."):
        return tensor[:, :width]
    if ".fc1.bias" in name:
        return tensor
    if ".projection.weight" in name:
        return tensor[:width, :width]
    return tensor[:width]
