"""Map weight names between the published files and transformers' `Blip2ForConditionalGeneration`.

Two things are not one to one. EVA has separate biases for queries and values and none for keys; BLIP-2 in transformers
has one bias for all three, zero for the keys. And the LLM gets a row for the image token.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration

from ...common.checkpoint import load_exact, named_tensors
from ...common.errors import CheckpointError

IMAGE_TOKEN = "<ImageHere>"
SHARD = "2GB"  # size of a weight file
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
    ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding", ()),
    ("visual_encoder.blocks", "vision_model.encoder.layers", _VIT),
    ("ln_vision", "vision_model.post_layernorm", ()),
    ("query_tokens", "query_tokens", ()),
    ("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm", ()),
    ("Qformer.bert", "qformer", _QFORMER),
    ("llama_proj", "language_projection", ()),
    ("llama_model", "language_model", ()),
)


def blip2_with(config: Blip2Config, state: dict[str, Tensor], source: str | Path) -> Blip2ForConditionalGeneration:
    """transformers' model, whose parameters are the tensors of `state` themselves, in their own dtypes.
    Raises CheckpointError: a weight of `source` is missing, unexpected or of another shape."""
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    targets, tied = named_tensors(model), config.text_config.tie_word_embeddings
    required = {name for name in targets if not (tied and name.endswith("lm_head.weight"))}
    load_exact(targets, state, source, required=required, device="meta")
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def renamed(name: str, back: bool = False) -> str:
    """The name in transformers of a published weight; with `back`, the published name of one in transformers."""
    for old, new, renames in _PARTS:
        if back:
            old, new, renames = new, old, [(there, here) for here, there in renames]
        if name.startswith(old):
            rest = name.removeprefix(old)
            for pair in renames:
                rest = rest.replace(*pair)
            return new + rest
    raise CheckpointError(f"{name}: {'MiniGPT-4' if back else 'BLIP-2 in transformers'} has no place for this weight")


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to transformers' names. Only the joined biases are new tensors."""
    found = {}
    for name, tensor in state.items():
        if name.endswith(".q_bias"):
            value = state[name.replace(".q_bias", ".v_bias")]
            found[renamed(name.replace(".q_bias", ".qkv.bias"))] = torch.cat([tensor, torch.zeros_like(value), value])
        elif not name.endswith(".v_bias"):
            found[renamed(name)] = tensor
    return found


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights in transformers to the published names.
    Raises CheckpointError: a weight that MiniGPT-4 does not have, such as a bias of the keys."""
    found = {}
    for name, tensor in state.items():
        published = renamed(name, back=True)
        if published.startswith("visual_encoder.") and published.endswith(".qkv.bias"):
            query, key, value = tensor.chunk(3)
            if key.any():
                raise CheckpointError(f"{name}: the keys have a bias, which EVA-ViT does not have")
            stem = published.removesuffix("qkv.bias")
            found |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
        else:
            found[published] = tensor
    return found
