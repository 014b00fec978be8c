"""The same model under two sets of names: the published files', and transformers' `Blip2ForConditionalGeneration`.

Two things are not one to one. EVA keeps the biases of queries and values apart and has none for keys; BLIP-2 in
transformers has one bias of all three, with zeros for the keys. And the LLM gets a row for the image's token.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...common.errors import CheckpointError

IMAGE_TOKEN = "<ImageHere>"
INDEX_FILE = "model.safetensors.index.json"  # transformers' name
NORMS_FILE = "vision_norms.safetensors"  # ours: the original norms of a widened tower, see wide.py
# Keys of the model's config that transformers' has no place for; import-hf needs them.
OWN_SETTINGS = (
    "conv_template", "end_sym", "pad_token", "temperature", "repetition_penalty", "max_txt_len", "prompt_template",
)  # fmt: skip

# prefix here -> prefix there, and what is renamed below it. The first prefix that fits counts.
_VIT = ((".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."), (".attn.proj.", ".self_attn.projection."),
        (".attn.", ".self_attn."))  # fmt: skip
_QFORMER = ((".attention.self.", ".attention.attention."), (".crossattention.self.", ".crossattention.attention."))
_PARTS = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding", ()),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding", ()),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding.", ()),
    ("visual_encoder.blocks.", "vision_model.encoder.layers.", _VIT),
    ("ln_vision.", "vision_model.post_layernorm.", ()),
    ("query_tokens", "query_tokens", ()),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm.", ()),
    ("Qformer.bert.", "qformer.", _QFORMER),
    ("llama_proj.", "language_projection.", ()),
    ("llama_model.", "language_model.", ()),
)


def hf_name(name: str) -> str:
    """Published name -> transformers'."""
    for here, there, renames in _PARTS:
        if name.startswith(here):
            rest = "." + name.removeprefix(here)  # the dot lets a rename begin at the start
            for old, new in renames:
                rest = rest.replace(old, new)
            return there + rest[1:]
    raise CheckpointError(f"{name}: transformers' BLIP-2 has no place for this weight")


def published_name(name: str) -> str:
    """transformers' name -> the published."""
    for here, there, renames in _PARTS:
        if name.startswith(there):
            rest = "." + name.removeprefix(there)
            for old, new in renames:
                rest = rest.replace(new, old)
            return here + rest[1:]
    raise CheckpointError(f"{name}: not a weight of a MiniGPT-4 in transformers' BLIP-2 format")


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> transformers'; tensors stay the same objects, but for the joined biases."""
    found = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last == "v_bias":
            continue
        if last == "q_bias":
            value = state[f"{stem}.v_bias"]
            found[hf_name(f"{stem}.qkv.bias")] = torch.cat([tensor, torch.zeros_like(value), value])
        else:
            found[hf_name(name)] = tensor
    return found


def to_published(state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """transformers' names -> the published.

    Raises:
        CheckpointError: a weight that MiniGPT-4 has no place for, keys with a bias among them.
    """
    found = {}
    for name, tensor in state:
        name = published_name(name)
        if name.startswith("visual_encoder.") and name.endswith(".qkv.bias"):
            query, key, value = tensor.chunk(3)
            if key.any():
                raise CheckpointError(f"{name}: the keys have a bias, which EVA-ViT does not know")
            stem = name.removesuffix("qkv.bias")
            found |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
        else:
            found[name] = tensor
    return found
