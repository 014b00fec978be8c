"""At full size (on the meta device, no memory) our modules have exactly the published files' names and shapes."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from minigpt4.common.checkpoint import load_exact, named_tensors
from minigpt4.common.errors import CheckpointError
from minigpt4.common.schema import ModelConfig, QFormerConfig
from minigpt4.models import qformer as qf
from minigpt4.models.eva_vit import create_vit, published_vit_state

# Names and shapes of the original's model at 13B without the LLM, and what BLIP-2's file holds beside them.
NAMES = Path(__file__).parent / "data" / "published_names.json.gz"


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, tuple]]:
    data = json.loads(gzip.decompress(NAMES.read_bytes()))
    return {part: {name: tuple(shape) for name, shape in names.items()} for part, names in data.items()}


@pytest.fixture(scope="module")
def ours() -> dict[str, torch.Tensor]:
    """The tensors of a full-size model under their published names."""
    config = ModelConfig()
    with torch.device("meta"):
        vit = create_vit(config.vit_model, config.image_size)
        qformer = qf.create_qformer(vit.num_features, **vars(QFormerConfig()))
        others = nn.ModuleDict({"ln_vision": nn.LayerNorm(vit.num_features), "llama_proj": nn.Linear(768, 5120)})
        queries = torch.empty(1, config.num_query_token, config.qformer_kwargs.hidden_size)
    return {
        **{f"visual_encoder.{k}": v for k, v in named_tensors(vit).items()},
        **{qf.to_published(name): tensor for name, tensor in named_tensors(qformer).items()},
        **named_tensors(others),
        "query_tokens": queries,
    }


def test_names_and_shapes_are_equal(ours, published):
    wanted = {k: v for k, v in published["model"].items() if not k.endswith("position_ids")}  # no weight
    assert len(wanted) == 770
    assert {k: tuple(v.shape) for k, v in ours.items()} == wanted


def test_sizes_are_the_published(ours):
    def count(prefix):
        return sum(v.numel() for k, v in ours.items() if k.startswith(prefix))

    assert count("visual_encoder.") == 985_894_528
    assert count("Qformer.") == 105_137_664
    assert count("llama_proj.") == 3_937_280


def meta_state(names: dict[str, tuple]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def test_blip2s_file_fits_with_all_it_holds_beside(ours, published):
    side = ("Qformer.", "query_tokens", "ln_vision.")
    targets = {k: v for k, v in ours.items() if k.startswith(side)}
    held = {k: v for k, v in published["model"].items() if k.startswith(side)} | published["blip2_also_holds"]
    held |= {"t5_proj.weight": (2048, 768), "t5_model.shared.weight": (8, 8)}
    load_exact(targets, meta_state(held), "blip2.pth", ignore=qf.IGNORED.match, device="meta")
    with pytest.raises(CheckpointError, match=r"unexpected: Qformer\.bert\.encoder\.layer\.12\.attention"):
        more = held | {"Qformer.bert.encoder.layer.12.attention.self.key.bias": (768,)}
        load_exact(targets, meta_state(more), "blip2.pth", ignore=qf.IGNORED.match)


def test_eva_vit_gs_file_fits_with_all_it_holds_beside(published):
    """The file has 40 blocks, a final norm and a head, of which BLIP-2 uses 39 blocks; and may be of another grid."""
    with torch.device("meta"):
        vit = create_vit("eva_clip_g", 224)
    prefix = "visual_encoder."
    held = {k.removeprefix(prefix): v for k, v in published["model"].items() if k.startswith(prefix)}
    last = {k.replace("blocks.38.", "blocks.39."): v for k, v in held.items() if k.startswith("blocks.38.")}
    beside = {"norm.weight": (1408,), "fc_norm.bias": (1408,), "head.weight": (1000, 1408), "mask_token": (1, 1, 1408)}
    state = published_vit_state(meta_state(held | last | beside), vit)
    assert {k: tuple(v.shape) for k, v in state.items()} == held
    load_exact(named_tensors(vit), state, "eva_vit_g.pth", device="meta")


@pytest.mark.parametrize("image_size", [224, 364])
def test_position_embeddings_follow_the_grid(image_size):
    with torch.device("meta"):
        vit = create_vit("eva_clip_g", image_size, depth=1)
    grid = image_size // 14
    rising = torch.linspace(0, 1, 16).repeat(16)[None, :, None].expand(1, 256, 4)
    pos_embed = torch.cat([torch.full((1, 1, 4), 7.0), rising], dim=1)
    kept = published_vit_state({"pos_embed": pos_embed}, vit)["pos_embed"]
    assert kept.shape == (1, 1 + grid * grid, 4)
    assert (kept[:, 0] == 7).all()  # CLS is not part of the grid
    rows = kept[0, 1:, 0].reshape(grid, grid)
    assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-5)  # the same in every row, rising along it
    assert (rows[0].diff() > 0).all()
