"""The visual encoder: EVA-ViT-g as BLIP-2 uses it, or any timm model by name.

Notation: B batch, N tokens, D_vit width.
"""

import math

import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn

from ..common.errors import ConfigError, did_you_mean

# EVA-ViT-g/14 of BLIP-2: 39 of EVA's 40 blocks, no final norm, no head.
EVA_CLIP_G = dict(
    patch_size=14, embed_dim=1408, depth=39, num_heads=16, mlp_ratio=4.3637, qkv_bias=True, num_classes=0,
    global_pool="", class_token=True,
)  # fmt: skip


# Parts of timm's models that come after `forward_features` (pooling, its norm, the classifier): not ours, and a
# parameter that never gets a gradient would stop DDP.
AFTER_FEATURES = ("attn_pool", "fc_norm", "head")


def create_vit(name: str, image_size: int, drop_path_rate: float = 0.0, **kwargs) -> nn.Module:
    """A visual encoder with random weights.

    Args:
        name: `eva_clip_g` (kwargs change its sizes) or the name of a timm model.
        image_size: side of the square input, pixels.
    Returns:
        a module for `encode_tokens`, with the attribute `num_features` (D_vit).
    Raises:
        ConfigError: timm has no such model, or it takes no such argument.
    """
    try:
        if name == "eva_clip_g":
            vit = Eva(img_size=image_size, drop_path_rate=drop_path_rate, **{**EVA_CLIP_G, **kwargs})
            vit.norm = nn.Identity()  # BLIP-2's own ln_vision takes its place
            return vit
        if not timm.is_model(name):
            close = did_you_mean(name, ["eva_clip_g", *timm.list_models()])
            raise ConfigError(f"model.vit_model: {name!r} is neither eva_clip_g nor a model of timm{close}")
        arguments = {"pretrained": False, "num_classes": 0, **kwargs}
        if drop_path_rate:  # not every model takes it
            arguments["drop_path_rate"] = drop_path_rate
        try:
            vit = timm.create_model(name, **{"img_size": image_size, **arguments})
        except TypeError:  # convolutional networks take any size and no such argument
            vit = timm.create_model(name, **arguments)
    except TypeError as error:
        raise ConfigError(f"model.vit_kwargs: {kwargs} does not suit {name}: {error}") from None
    for part in AFTER_FEATURES:
        if isinstance(getattr(vit, part, None), nn.Module):
            setattr(vit, part, nn.Identity())
    return vit


def encode_tokens(vit: nn.Module, image: Tensor) -> Tensor:
    """image (B, 3, H, W) -> tokens (B, N, D_vit): a ViT's tokens with CLS, or a CNN's feature map read row by row."""
    if not hasattr(vit, "patch_embed"):  # a CNN takes 0.6 of the time when channels lie together
        image = image.contiguous(memory_format=torch.channels_last)
    features = vit.forward_features(image)
    if features.ndim == 3:
        return features
    if getattr(vit, "output_fmt", "NCHW") == "NHWC":  # Swin and its kin
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def published_vit_state(state: dict[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """`eva_vit_g.pth` (flat, EVA's names, which are timm's too) -> what `vit` loads strictly.

    Drops what BLIP-2 drops (the blocks past `depth`, final norm, head) and interpolates position embeddings when the
    grid differs (bicubic). Source: the original's create_eva_vit_g.
    """
    own = vit.state_dict()
    # `default_cfg` names the classifier of every timm model but the one built here, whose files call it `head`;
    # distilled ones have two.
    classifier = (getattr(vit, "default_cfg", None) or {}).get("classifier") or "head"
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    dropped = ("norm.", "mask_token", *(f"{name}." for name in (*AFTER_FEATURES, *classifiers)))
    depth = len(vit.blocks) if isinstance(vit, Eva) else None
    kept = {}
    for name, tensor in state.items():
        if depth and name.startswith("blocks.") and int(name.split(".")[1]) >= depth:
            continue
        if name not in own and name.startswith(dropped):
            continue
        kept[name] = tensor
    if "pos_embed" in kept and "pos_embed" in own:
        kept["pos_embed"] = _resize_pos_embed(kept["pos_embed"], own["pos_embed"].shape[1])
    return kept


def _resize_pos_embed(pos_embed: Tensor, tokens: int) -> Tensor:
    """(1, c + g*g, D) -> (1, tokens, D): the grid is interpolated, the c entries before it (CLS, or none) stay.

    What is interpolated is fp32 even where the file is fp16, as in the original.
    """
    new = math.isqrt(tokens)
    first = tokens - new * new  # c, which is small against the grid
    old = math.isqrt(max(pos_embed.shape[1] - first, 0))
    if pos_embed.shape[1] == tokens or old * old + first != pos_embed.shape[1]:
        return pos_embed
    cls, grid = pos_embed.float().split([first, old * old], dim=1)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)
