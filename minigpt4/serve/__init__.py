"""Let people use a model: `build_chat` makes a `Chat` from a config.

app.py (with app.css) is the page, start.py finds its address and folder; describe.py answers in the terminal.
"""

from __future__ import annotations

import torch

from ..common.schema import Config
from ..conversation.chat import Chat
from ..models.llm_loading import allow_repacking
from ..tasks import build_model, chat_with


def build_chat(config: Config, device: torch.device | str = "cpu") -> Chat:
    """The config's model on `device`, ready to talk (`load_config(..., mode="chat")`)."""
    model = build_model(config.model, torch.device(device))
    allow_repacking(model.llama_model, True)
    return chat_with(model, config)
