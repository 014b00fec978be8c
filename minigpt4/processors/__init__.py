"""Image transforms and caption cleaning, by registered name."""

from . import image_processors, text_processors

__all__ = ["image_processors", "text_processors"]
