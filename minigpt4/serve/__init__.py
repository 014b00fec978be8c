"""Putting a chat in front of people: from a config to a `Chat`, and the page (app.py)."""

from __future__ import annotations

import torch

from .. import processors  # noqa: F401  registers them, for the config's names
from ..common.registry import PROCESSORS
from ..common.schema import Config
from ..conversation.chat import Chat
from ..tasks import build_model


def chat_processor(config: Config):
    """How the chat sees a picture: PIL image -> float (3, H, W).

    As in the original, it is the `train` processor of the config's first dataset; except that a random crop,
    which a training config may have there, becomes the whole picture with the same normalization.
    Without a dataset: `blip2_image_eval` at the model's image size.
    """
    for dataset in config.datasets.values():
        chosen = dataset.vis_processor.train
        if chosen is not None:
            kwargs = {"image_size": config.model.image_size} | chosen.kwargs()
            if chosen.name != "blip2_image_train":
                return PROCESSORS.get(chosen.name)(**kwargs)
            kept = {k: v for k, v in kwargs.items() if k in ("image_size", "mean", "std")}
            return PROCESSORS.get("blip2_image_eval")(**kept)
    return PROCESSORS.get("blip2_image_eval")(image_size=config.model.image_size)


def build_chat(config: Config, device: torch.device | str = "cpu") -> Chat:
    """The config's model on `device`, ready to talk (`load_config(..., mode="chat")`)."""
    model = build_model(config.model, torch.device(device))
    return Chat(model, chat_processor(config), config.model.conv_template, temperature=config.model.temperature)
