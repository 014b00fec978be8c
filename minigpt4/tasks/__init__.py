"""Tasks: from a config to a model, data, and the meaning of one step.

image_text_pretrain.py is the task of both stages; extract_features.py (`minigpt4 features`) runs the frozen ViT once.
"""

from .image_text_pretrain import ImageTextPretrain, build_model, chat_processor, chat_with

__all__ = ["ImageTextPretrain", "build_model", "chat_processor", "chat_with"]
