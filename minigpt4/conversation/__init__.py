"""Talking: how a conversation is written (prompts.py), decoded (generation.py) and led (chat.py)."""

from . import prompts  # registers the conversation templates

__all__ = ["prompts"]
