"""The Q-Former: transformers' `Blip2QFormerModel` under BLIP-2's published parameter names.

The file format of BLIP-2 and MiniGPT-4 (`Qformer.bert.encoder.layer.0.attention.self.query.weight`, ...) is the one we
read and write; the mapping lives here, beside the model it maps.
"""

import re

from torch import Tensor
from transformers import Blip2QFormerConfig, Blip2QFormerModel

PREFIX = "Qformer.bert."

# What BLIP-2's file holds beyond the query branch: the text branch, its embeddings, its head, and the T5 side.
IGNORED = re.compile(
    r"(t5_|opt_|Qformer\.cls\.|Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.|vision_proj|text_proj|itm_head|temp$)"
)


def create_qformer(
    encoder_width: int, *, hidden_size: int, num_hidden_layers: int, num_attention_heads: int, intermediate_size: int,
    cross_attention_frequency: int, dropout: float,
) -> Blip2QFormerModel:  # fmt: skip
    """A Q-Former with random weights.

    Args:
        encoder_width: D_vit, the width of the tokens it looks at.
    """
    return Blip2QFormerModel(
        Blip2QFormerConfig(
            encoder_hidden_size=encoder_width,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            cross_attention_frequency=cross_attention_frequency,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def to_published(name: str) -> str:
    """transformers' parameter name -> the published: `layernorm.bias` -> `Qformer.bert.embeddings.LayerNorm.bias`."""
    name = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)
    return PREFIX + re.sub(r"\.((?:cross)?attention)\.attention\.", r".\1.self.", name)


def to_published_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Blip2QFormerModel's state dict under the published names."""
    return {to_published(name): tensor for name, tensor in state.items()}
