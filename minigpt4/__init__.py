"""MiniGPT-4, done right: a frozen BLIP-2 vision side speaks to a frozen LLM through one trained linear layer."""

import logging

# transformers imports torchao, whose enums make torch complain at every start; nothing a user could do anything about.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

__version__ = "0.1.0"
