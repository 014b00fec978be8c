"""MiniGPT-4, done right: a frozen BLIP-2 vision side speaks to a frozen LLM through one trained linear layer."""

__version__ = "0.1.0"
