"""From files to batches; builders choose a dataset by its name in the config."""

from . import builders
from .stream import SampleStream, collate, make_loader

__all__ = ["SampleStream", "builders", "collate", "make_loader"]
