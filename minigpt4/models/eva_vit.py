"""The visual encoder: EVA-ViT-g as BLIP-2 uses it, or any timm model by name.

Notation: B batch, N tokens, D_vit width.
"""

import math

import torch
from torch import Tensor, nn

from ..common.errors import ConfigError, did_you_mean

# EVA-ViT-g/14 of BLIP-2: 39 of EVA's 40 blocks, no final norm, no head
EVA_CLIP_G = dict(
    patch_size=14, embed_dim=1408, depth=39, num_heads=16, mlp_ratio=4.3637, qkv_bias=True, num_classes=0,
    global_pool="", class_token=True,
)  # fmt: skip
# Parts of timm's models after `forward_features`. They are not used, and parameters without a gradient would stop DDP.
AFTER_FEATURES = ("attn_pool", "fc_norm", "head")


def create_vit(name: str, image_size: int, drop_path_rate: float = 0.0, **kwargs) -> nn.Module:
    """A visual encoder with random weights and the attribute `num_features` (D_vit): `eva_clip_g`, or a timm model.
    Raises ConfigError for an unknown name or argument."""
    import timm  # here, because it loads torchvision's models and torch._dynamo
    from timm.models.eva import Eva

    try:
        if name == "eva_clip_g":
            vit = Eva(img_size=image_size, drop_path_rate=drop_path_rate, **{**EVA_CLIP_G, **kwargs})
            vit.norm = nn.Identity()  # BLIP-2's own ln_vision takes its place
            return vit
        if not timm.is_model(name):
            close = did_you_mean(name, ["eva_clip_g", *timm.list_models()])
            raise ConfigError(f"model.vit_model: {name!r} is neither eva_clip_g nor a model of timm{close}")
        rate = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}  # not every model takes it
        arguments = {"pretrained": False, "num_classes": 0, **rate, **kwargs}
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
    """`eva_vit_g.pth`, or a file with timm's names -> what `vit` loads strictly.

    Drops what BLIP-2 drops (the blocks past `depth`, final norm, head) and interpolates position embeddings of another
    grid (bicubic). Source: the original's create_eva_vit_g.
    """
    from timm.layers import resample_abs_pos_embed
    from timm.models.eva import Eva

    own = vit.state_dict()
    classifier = (getattr(vit, "default_cfg", None) or {}).get("classifier") or "head"  # a distilled ViT has two
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    dropped = ("norm.", "mask_token", *(f"{name}." for name in (*AFTER_FEATURES, *classifiers)))
    if isinstance(vit, Eva):
        own_blocks = tuple(f"blocks.{i}." for i in range(len(vit.blocks)))
        state = {k: v for k, v in state.items() if not k.startswith("blocks.") or k.startswith(own_blocks)}
    kept = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(dropped)}
    if "pos_embed" in kept and "pos_embed" in own:
        there, here = kept["pos_embed"].shape[1], own["pos_embed"].shape[1]
        new = math.isqrt(here)
        first = here - new * new  # entries before the grid: CLS, or none
        old = math.isqrt(max(there - first, 0))
        if there != here and old * old + first == there:  # in fp32, as the original
            grid = kept["pos_embed"].float()
            kept["pos_embed"] = resample_abs_pos_embed(grid, [new, new], [old, old], first, antialias=False)
    return kept
