"""Other vision towers: any timm model, from the file that timm's own model writes."""

import pytest
import timm
import torch
import torch.nn.functional as F

from minigpt4.common.checkpoint import load_exact, named_tensors
from minigpt4.common.errors import CheckpointError
from minigpt4.models.eva_vit import create_vit, encode_tokens, published_vit_state

TINY = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "tokens"),
    [
        ("vit_base_patch16_clip_224", TINY, 64, 17),  # CLS and 4 x 4
        ("vit_base_patch16_siglip_224", TINY, 64, 16),  # no CLS; pooled by attention
        ("vit_base_patch14_reg4_dinov2", TINY, 70, 30),  # CLS, 4 registers, 5 x 5
        ("eva02_tiny_patch14_224", TINY, 70, 26),
        ("beitv2_base_patch16_224", TINY, 64, 17),
        ("deit_base_distilled_patch16_224", TINY, 64, 18),  # two classifiers
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, 64, 4),
    ],
)
def test_a_towers_own_file_fits_and_everything_is_used(name, kwargs, size, tokens):
    theirs = timm.create_model(
        name, **kwargs, **({} if "convnext" in name else {"img_size": size})
    )  # classifier and all
    vit = create_vit(name, size, **kwargs)
    load_exact(named_tensors(vit), published_vit_state(theirs.state_dict(), vit), "file")
    image = torch.randn(2, 3, size, size)
    out = encode_tokens(vit.eval(), image)
    assert out.shape == (2, tokens, vit.num_features)
    features = theirs.eval().forward_features(image)
    assert torch.equal(out, features if features.ndim == 3 else features.flatten(2).transpose(1, 2))
    out.sum().backward()
    assert [n for n, p in vit.named_parameters() if p.grad is None] == []  # DDP would stop at one


@pytest.mark.parametrize(("name", "first"), [("vit_base_patch16_224", 1), ("vit_base_patch16_siglip_224", 0)])
def test_positions_are_interpolated_with_and_without_cls(name, first):
    old, new = (create_vit(name, size, **TINY) for size in (64, 96))
    with torch.no_grad():
        old.pos_embed.fill_(2.0)
        old.pos_embed[:, :first] = -1.0
    load_exact(named_tensors(new), published_vit_state(old.state_dict(), new), "file")
    assert new.pos_embed.shape[1] == first + 36
    assert (new.pos_embed[:, :first] == -1).all() and (new.pos_embed[:, first:] - 2).abs().max() < 1e-5
    with pytest.raises(CheckpointError, match="pos_embed"):  # a file of another kind of grid is told, not bent
        state = {**old.state_dict(), "pos_embed": torch.zeros(1, 15, 32)}
        load_exact(named_tensors(new), published_vit_state(state, new), "file")


def test_positions_of_an_fp16_file_are_interpolated_in_fp32():
    """As the original does: what lies between two fp16 numbers is not rounded to fp16."""
    vit = create_vit("vit_base_patch16_224", 96, **TINY)
    pos_embed = torch.randn(1, 17, 32).half()
    grid = pos_embed[:, 1:].float().reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    found = published_vit_state({"pos_embed": pos_embed}, vit)["pos_embed"]
    assert torch.equal(found, torch.cat([pos_embed[:, :1].float(), grid.reshape(1, 36, 32)], dim=1))
