"""The Q-Former: transformers' `Blip2QFormerModel`, and the parameter names of BLIP-2's and MiniGPT-4's files."""

import re

import transformers
from torch import nn

PREFIX = "Qformer.bert."

# Parts of BLIP-2's file that are not used: text branch, its embeddings and head, and the T5 side
IGNORED = re.compile(
    r"(t5_|opt_|Qformer\.cls\.|Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.|vision_proj|text_proj|itm_head|temp$)"
)


def create_qformer(encoder_width: int, *, dropout: float, **sizes: int) -> nn.Module:
    """A Q-Former with random weights. `encoder_width` is D_vit; the others are the keys of model.qformer_kwargs."""
    config = transformers.Blip2QFormerConfig(
        encoder_hidden_size=encoder_width, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **sizes
    )
    return transformers.Blip2QFormerModel(config)


def to_published(name: str) -> str:
    """transformers' parameter name -> BLIP-2's: `layernorm.bias` -> `Qformer.bert.embeddings.LayerNorm.bias`"""
    name = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)
    return PREFIX + re.sub(r"\.((?:cross)?attention)\.attention\.", r".\1.self.", name)
