"""Image transforms and caption cleaning, by registered name.

image_processors.py also decodes picture files, for every reader of this package; text_processors.py cleans captions.
"""

from . import image_processors, text_processors

__all__ = ["image_processors", "text_processors"]
