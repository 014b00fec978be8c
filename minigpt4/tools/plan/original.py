"""The original as it ran in April 2023, for comparison with the figures it reported: full logits, attention unfused.

Its LLM was transformers 4.28's LLaMA. Two places of it kept more for backward than today's do; they are put in here.
"""

import math
import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ...models.batch import full_labels, to_device


def as_it_ran(model: nn.Module) -> None:
    """Give a MiniGPT4's LLaMA the attention and the norms of transformers 4.28."""
    AttentionInterface.register("transformers_4_28", _attention)
    AttentionMaskInterface.register("transformers_4_28", eager_mask)
    model.llama_model.set_attn_implementation("transformers_4_28")
    for module in model.llama_model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(_rms_norm, module)


def loss(model: nn.Module, batch: dict) -> Tensor:
    """The original's loss: logits of every position, image and prompt too, then all but the text masked."""
    batch = to_device(batch, model.device)
    labels = full_labels(batch)
    inputs = {"inputs_embeds": model.embed_batch(batch), "attention_mask": batch["attention_mask"]}
    logits = model.llama_model(**inputs, use_cache=False).logits
    before, after = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    return F.cross_entropy(before.flatten(0, 1), after.flatten())


def _attention(module, query, key, value, attention_mask, **_) -> tuple[Tensor, None]:
    """(B, H, S, D) each -> (B, S, H, D). Source: LlamaAttention.forward of transformers 4.28."""
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
    if attention_mask is not None:
        scores = scores + attention_mask
        lowest = torch.full((), torch.finfo(scores.dtype).min, dtype=scores.dtype, device=scores.device)
        scores = torch.max(scores, lowest)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def _rms_norm(self, x: Tensor) -> Tensor:
    """x (B, S, D). The 16-bit input is multiplied as it is, so that backward keeps it beside its fp32 copy."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * x.to(self.weight.dtype)
