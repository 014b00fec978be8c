"""An exact BLIP-2 for a ViT whose output varies little: one more head's width, which mends the norm's epsilon.

BLIP-2 in transformers has one epsilon for all of its vision norms. The original has 1e-6 in the ViT and 1e-5 in
`ln_vision`. With a variance of 1 the difference is in the sixth digit; with a variance near the epsilons it is most of
the number. Then the vision width grows from D to E = D + D/heads (one head more, of zeros):

- Whatever writes to the residual stream also writes its mean into the new channels. So the mean of all E channels stays
  the mean of the D, and their variance is D/E of it: with the epsilon times D/E and the norms' weights times
  sqrt(D/E), every norm inside gives what it gave.
- The last layer adds +c and -c to two of them. Their share of the variance is the missing 9e-6.

Nothing reads the new channels: the columns that would are zeros. In real arithmetic this is the same model.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

INNER_EPS, LN_VISION_EPS = 1e-6, 1e-5
NORMS = (".layer_norm1.", ".layer_norm2.", "vision_model.post_layernorm.")


def plain_error(variance: float) -> float:
    """How far ln_vision is off, as a share of its output, with the inner epsilon, at this variance of its input."""
    return math.sqrt((variance + LN_VISION_EPS) / (variance + INNER_EPS)) - 1


def is_norm(name: str) -> bool:
    return name.startswith("vision_model.") and any(part in name for part in NORMS)


def _wide(name: str, tensor: Tensor, width: int, more: int, last_layer: int) -> Tensor:
    """One tensor of the plain layout -> its wide form. `more` channels are added to `width`."""

    def mean_rows(t: Tensor) -> Tensor:  # rows write to the residual stream
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
        tensor = F.pad(tensor, (0, more))  # the new head's output is not used
    tensor = mean_rows(tensor)  # patch_embedding, projection, fc2
    if name == f"vision_model.encoder.layers.{last_layer}.mlp.fc2.bias":
        c = math.sqrt((LN_VISION_EPS - INNER_EPS) * width / 2)
        tensor[width] += c
        tensor[width + 1] -= c
    return tensor


def concerns(name: str) -> bool:
    """Is this tensor another one in the wide form?"""
    reads_vision = ".crossattention.attention.key.weight", ".crossattention.attention.value.weight"
    return name.startswith("vision_model.") or (name.startswith("qformer.") and name.endswith(reads_vision))


def widen(state: dict[str, Tensor], vision: dict) -> tuple[dict[str, Tensor], dict]:
    """The plain layout's tensors and vision config -> the wide ones."""
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
    """A tensor of the wide layout -> the plain one's; but the norms' weights come from a file of their own."""
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
