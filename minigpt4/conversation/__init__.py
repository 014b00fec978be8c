"""Conversations about images.

In reading order: prompts.py (with templates.toml) and chat_template.py, how a conversation is written as text;
plain_text.py, why people's texts hold no control tokens; generation.py, how an answer is decoded; chat.py, `Chat`,
which does it all.
"""

from . import prompts  # noqa: F401  (registers the conversation templates)
