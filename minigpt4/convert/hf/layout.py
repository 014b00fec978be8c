"""Map weight names between the published files and transformers' `Blip2ForConditionalGeneration`.

Two things are not one to one. EVA has separate biases for queries and values and none for keys; BLIP-2 in transformers
has one bias for all three, zero for the keys. And the LLM gets a row for the image token.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...common.errors import CheckpointError

IMAGE_TOKEN = "<ImageHere>"
INDEX_FILE = "model.safetensors.index.json"  # transformers' name
NORMS_FILE = "vision_norms.safetensors"  # ours: the original norm weights of a widened tower, see wide.py
# Keys of our model config that transformers' config does not have; import-hf needs them.
OWN_SETTINGS = (
    "conv_template", "end_sym", "pad_token", "temperature", "repetition_penalty", "max_txt_len", "prompt_template",
)  # fmt: skip

# (published prefix, transformers' prefix, renames below it); the first prefix that matches is used.
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
    """The name in transformers of a published weight."""
    for here, there, renames in _PARTS:
        if name.startswith(here):
            rest = "." + name.removeprefix(here)  # with the dot, a rename can match at the start
            for old, new in renames:
                rest = rest.replace(old, new)
            return there + rest[1:]
    raise CheckpointError(f"{name}: transformers' BLIP-2 has no place for this weight")


def published_name(name: str) -> str:
    """The published name of a weight in transformers."""
    for here, there, renames in _PARTS:
        if name.startswith(there):
            rest = "." + name.removeprefix(there)
            for old, new in renames:
                rest = rest.replace(new, old)
            return here + rest[1:]
    raise CheckpointError(f"{name}: not a weight of a MiniGPT-4 in transformers' BLIP-2 format")


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to transformers' names. Only the joined biases are new tensors."""
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
    """Rename weights in transformers to the published names.

    Raises:
        CheckpointError: a weight that MiniGPT-4 does not have, such as a bias of the keys.
    """
    found = {}
    for name, tensor in state:
        name = published_name(name)
        if name.startswith("visual_encoder.") and name.endswith(".qkv.bias"):
            query, key, value = tensor.chunk(3)
            if key.any():
                raise CheckpointError(f"{name}: the keys have a bias, which EVA-ViT does not have")
            stem = name.removesuffix("qkv.bias")
            found |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
        else:
            found[name] = tensor
    return found
