"""Registers what the configs of this folder name; they import it by `run.import_modules: [recipes.tiny.parts]`."""

from . import captions, task, words

__all__ = ["captions", "task", "words"]
