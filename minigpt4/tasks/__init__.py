"""Tasks: from a config to a model, data, and the meaning of one step."""

from .image_text_pretrain import ImageTextPretrain, build_model, chat_processor, chat_with

__all__ = ["ImageTextPretrain", "build_model", "chat_processor", "chat_with"]
