"""Models by their arch name."""

from .mini_gpt4 import MiniGPT4
from .words import MiniGPT4Words

__all__ = ["MiniGPT4", "MiniGPT4Words"]
