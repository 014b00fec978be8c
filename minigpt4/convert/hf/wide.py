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
import re

import torch
import torch.nn.functional as F
from torch import Tensor

INNER_EPS, LN_VISION_EPS = 1e-6, 1e-5
# (names, axis of the channels that the layer writes, axes of those that it reads); qkv is cut into its three parts.
CHANNELS = (
    (r"^vision_model\..*(class|position)_embedding$", 2, ()),
    (r"^vision_model\..*(patch_embedding|fc2|projection\.bias)", 0, ()),
    (r"^vision_model\..*projection\.weight$", 0, (1,)),
    (r"^vision_model\..*qkv\.weight$", None, (1, 2)),
    (r"^vision_model\..*(qkv\.bias)$", None, (1,)),
    (r"^vision_model\..*fc1\.weight$|^qformer\..*\.crossattention\.attention\.(key|value)\.weight$", None, (1,)),
    (r"^vision_model\..*layer_?norm", None, (0,)),
)


def plain_error(variance: float) -> float:
    """The relative error of ln_vision with the ViT's epsilon, at this variance of its input."""
    return math.sqrt((variance + LN_VISION_EPS) / (variance + INNER_EPS)) - 1


def is_norm_weight(name: str) -> bool:
    return bool(re.search(r"^vision_model\..*layer_?norm\d?\.weight$", name))


def _axes(name: str) -> tuple[int | None, tuple[int, ...]]:
    return next(((written, read) for names, written, read in CHANNELS if re.search(names, name)), (None, ()))


def widen(state: dict[str, Tensor], vision: dict) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the vision config of the wide form, from those of the plain layout."""
    width, heads, depth = vision["hidden_size"], vision["num_attention_heads"], vision["num_hidden_layers"]
    more = width // heads
    wide = {}
    for name, tensor in state.items():
        written, read = _axes(name)
        if is_norm_weight(name):
            tensor = (tensor.double() * math.sqrt(width / (width + more))).to(tensor.dtype)
        tensor = tensor.unflatten(0, (3, width)) if ".qkv." in name else tensor
        for axis in read:
            tensor = F.pad(tensor.movedim(axis, -1), (0, more)).movedim(-1, axis)
        if written is not None:
            mean = tensor.double().mean(written, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.repeat_interleave(more, written)], written)
        wide[name] = tensor.flatten(0, 1) if ".qkv." in name else tensor
    last = wide[f"vision_model.encoder.layers.{depth - 1}.mlp.fc2.bias"]
    last[width : width + 2] += math.sqrt((LN_VISION_EPS - INNER_EPS) * width / 2) * torch.tensor([1, -1])
    epsilon = INNER_EPS * width / (width + more)
    return wide, vision | {"hidden_size": width + more, "num_attention_heads": heads + 1, "layer_norm_eps": epsilon}


def narrow(name: str, tensor: Tensor, width: int) -> Tensor:
    """The plain form of a wide tensor, except norm weights: those are kept in a file of their own."""
    written, read = _axes(name)
    tensor = tensor.unflatten(0, (3, -1)) if ".qkv." in name else tensor
    for axis in (*read, *([] if written is None else [written])):
        tensor = tensor.narrow(axis, 0, width)
    return (tensor.flatten(0, 1) if ".qkv." in name else tensor).clone()
