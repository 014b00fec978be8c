"""Talking: how a conversation is written (prompts.py, chat_template.py), decoded (generation.py), led (chat.py)."""

from . import prompts  # registers the conversation templates

__all__ = ["prompts"]
