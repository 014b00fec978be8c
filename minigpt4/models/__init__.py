"""Models by their arch name."""

from .mini_gpt4 import MiniGPT4

__all__ = ["MiniGPT4"]
