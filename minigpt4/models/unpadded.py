"""Batches without their padding: the LLM's linear layers see the real tokens alone, attention each row by itself.

The tokens of all rows lie one after the other, (1, T, D_llm), each with the position it has in its row. Attention alone
lays them out as (B, S) again, so that no row sees another: losses and gradients are those of the padded batch.
"""

from __future__ import annotations

import sys

import torch
import transformers
from torch import Tensor, nn

PREFIX = "unpadded_"  # of the names by which transformers knows these attentions
EAGER = "eager_attention_forward"  # each of its modules has its own


def leave_padding_out(llm: transformers.PreTrainedModel) -> None:
    """Let `hidden_states` do so, if this LLM has rotary positions, and full attention in every layer: eager or SDPA."""
    config, attention = llm.config.get_text_config(), llm.config._attn_implementation
    full = {*(getattr(config, "layer_types", None) or ["full_attention"])} == {"full_attention"}
    rotary = hasattr(llm.get_decoder(), "rotary_emb") and hasattr(sys.modules[type(llm).__module__], EAGER)
    if full and rotary and not getattr(config, "sliding_window", None) and attention in ("eager", "sdpa"):
        transformers.AttentionInterface.register(PREFIX + attention, unpadded_attention)
        transformers.AttentionMaskInterface.register(
            PREFIX + attention, transformers.AttentionMaskInterface()[attention]
        )
        llm.set_attn_implementation(PREFIX + attention)


def hidden_states(llm: transformers.PreTrainedModel, embeds: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What `lm_head` reads, (B, S, D_llm). Padding may hold anything.

    Args:
        embeds: (B, S, D_llm).
        batch: attention_mask (B, S). Optional: real_positions (T), the indices of what is no padding among all B * S,
            without which none is left out; position_ids (B, S) and seen (B, S, S), whether a token (second) sees
            another (third), without which tokens are counted from 0 and see themselves and those before them.
    """
    decoder, (rows, length) = llm.get_decoder(), embeds.shape[:2]
    seen, positions = batch.get("seen"), batch.get("position_ids")
    unpadded = llm.config._attn_implementation.startswith(PREFIX) and "real_positions" in batch
    if not unpadded and seen is None:
        mask = batch["attention_mask"]
        return decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    if seen is None:
        seen = batch["attention_mask"].bool()[:, None].expand(-1, length, -1).tril()
        positions = torch.arange(length, device=embeds.device).expand(rows, -1)
    least = torch.finfo(embeds.dtype).min
    mask = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device).masked_fill_(~seen, least)[:, None]
    if not unpadded:
        inputs = {"inputs_embeds": embeds, "position_ids": positions}
        return decoder(**inputs, attention_mask=mask, use_cache=False).last_hidden_state
    real, flat = batch["real_positions"], embeds.flatten(0, 1)
    hidden = decoder(
        inputs_embeds=flat.index_select(0, real)[None], position_ids=positions.flatten().index_select(0, real)[None],
        attention_mask=mask, use_cache=False, real_positions=real,
    ).last_hidden_state[0]  # (T, D_llm)  # fmt: skip
    return _laid(hidden, real, len(flat)).view_as(embeds)


def unpadded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    real_positions: Tensor | None = None, **options,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """transformers' attention of the name without PREFIX; with real_positions, of rows laid out as the mask's.

    Args:
        query, key, value: (1, heads, T, D).
        attention_mask: (B, 1, S, S), added to the scores.
    Returns:
        (1, T, heads, D), and the weights where there are any.
    """
    name = module.config._attn_implementation.removeprefix(PREFIX)
    attention = transformers.AttentionInterface().get_interface(
        name, getattr(sys.modules[type(module).__module__], EAGER)
    )
    if real_positions is None:  # a chat
        return attention(module, query, key, value, attention_mask, **options)

    rows, _, _, length = attention_mask.shape  # as numbers beside it they would be compiled anew for every batch

    def padded(states: Tensor) -> Tensor:  # (1, heads, T, D) -> (B, heads, S, D)
        laid = _laid(states[0].transpose(0, 1).flatten(1), real_positions, rows * length)
        return laid.view(rows, length, states.shape[1], states.shape[3]).transpose(1, 2)

    output, weights = attention(module, padded(query), padded(key), padded(value), attention_mask, **options)
    picked = _Picked.apply(output.flatten(2).flatten(0, 1), real_positions)
    return picked.view(1, len(real_positions), *output.shape[2:]), weights


def _laid(tokens: Tensor, index: Tensor, rows: int) -> Tensor:
    """tokens (T, D) as the rows `index` (T) of zeros (rows, D)."""
    return tokens.new_zeros(rows, tokens.shape[1]).index_copy(0, index, tokens)


class _Picked(torch.autograd.Function):
    """`rows.index_select(0, index)` for an index without repeats. Its own backward would add to zeros, which is slow
    when it is compiled: a step of the small model took 1.14 s, with this 0.90 s."""

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _laid(gradient, index, ctx.rows), None
